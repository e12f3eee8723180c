"""The rule `discarded-result`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.rules._words import uses
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    FileFacts,
    Imported,
    Operation,
    Result,
    Try,
    Value,
    With,
    is_forward,
    options,
)

#: Methods that are called for their result alone, and that nothing but a tensor has.
_METHODS = (
    "detach",
    "clamp",
    "clamp_min",
    "clamp_max",
    "masked_fill",
    "unsqueeze",
    "squeeze",
    "permute",
    "contiguous",
    "to",
    "cuda",
    "cpu",
    "float",
    "half",
    "double",
    "long",
)
_TENSOR_FUNCTION = re.compile(
    r"^torch\.(?:nn\.functional\.)?(?!no_grad|inference_mode|compile|load|device|manual_seed"
    r"|set_|get_|is_|save)[a-z]\w*$"
)
_TENSOR_METHOD = re.compile(
    r"^(?:view|reshape|flatten|mean|sum|exp|log|abs|sqrt|pow|clone|detach|clamp|squeeze|unsqueeze"
    r"|permute|transpose|float|half|double|long|softmax|sigmoid|tanh|norm|sign|matmul|mm|expand)$"
)
_NAME = re.compile(r"^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*$")
#: Context managers under which a statement is run for what it raises, warns or costs.
_TRIED = re.compile(
    r"raises|warns|assert|profile|record_function|catch|suppress|timer", re.IGNORECASE
)

#: A line that begins with a call of one of these methods.
_STATEMENT = re.compile(rf"\n[ \t]*([A-Za-z_][\w.]*)\.(?:{'|'.join(_METHODS)})\(")
#: How a line ends that is not the end of its statement, and a comment behind that.
_GOES_ON = frozenset("([{,\\+-*/=&|")
_COMMENT = re.compile(r"\s#[^'\"]*$")
#: The rest of a call without deeper brackets, and what else its statement does.
_REST = re.compile(r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)[ \t]*([^\s#;]?)")
#: What modules do in place, and modules by their names.
_MOVE = re.compile(r"\.(?:to|cuda|cpu|float|half|double)\($")
_MODULE = re.compile(r"(?:^|\.)(?:\w+_)?(?:model|module|criterion)$")
#: A value that a class gives, but for classes of tensors.
_MADE = re.compile(r"\s*(?::[^=\n]+)?=\s*(?!\w*(?:Tensor|Variable)\b)[A-Z]\w*[.(]")
_BOUND = re.compile(r"\s*(?::[^=\n]+)?=(?!=)")


class DiscardedResult(Rule):
    """The result of a tensor method that changes nothing in place is thrown away.

    Symptom: the tensor stays as it was: on its old device (which usually raises soon), or,
    without any error, unclamped or still in its graph.

    Why: `x.detach()`, `x.clamp(0, 1)` and `x.to(device)` return a new tensor and leave `x`
    alone. `module.to(device)` is different: it moves the module itself.

    What torch does: nothing. A result that nobody uses is freed.

    Limits: reported only where it is in sight that a tensor is meant: the result of arithmetic,
    of a torch function, or of a model.
    """

    since = "0.1"
    triggers = (
        (
            ".detach(|.clamp|.masked_fill(|queeze(|.permute(|.contiguous(|.to(|.cuda(|.cpu("
            "|.float(|.half(|.double(|.long("
        ),
        "torch",
    )
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.Tensor.detach.html",
        "https://pytorch.org/docs/stable/generated/torch.Tensor.to.html",
        "https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.to",
    )
    examples = (
        Bad(
            "the hidden state is not detached",
            """
            def train(model, loader, optimizer):
                hidden = torch.zeros(1, 8)
                for x, y in loader:
                    optimizer.zero_grad()
                    hidden = torch.tanh(hidden)
                    hidden.detach()  # error
                    F.mse_loss(model(x, hidden), y).backward()
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer):
                hidden = torch.zeros(1, 8)
                for x, y in loader:
                    optimizer.zero_grad()
                    hidden = torch.tanh(hidden)
                    hidden = hidden.detach()
                    F.mse_loss(model(x, hidden), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the hidden state is detached",
            """
            def train(model, loader, optimizer):
                hidden = torch.zeros(1, 8)
                for x, y in loader:
                    optimizer.zero_grad()
                    hidden = torch.tanh(hidden).detach()
                    F.mse_loss(model(x, hidden), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the perturbed image is not clamped",
            """
            def attack(model, x, y, epsilon):
                x = x.clone().requires_grad_()
                F.cross_entropy(model(x), y).backward()
                adversarial = x + epsilon * x.grad.sign()
                adversarial.clamp(0, 1)  # error
                return adversarial.detach()
            """,
        ),
        Bad(
            "the model's output is not detached",
            """
            def update(student, teacher, x, optimizer):
                target = teacher(x)
                target.detach()  # error
                optimizer.zero_grad()
                F.mse_loss(student(x), target).backward()
                optimizer.step()
            """,
        ),
        Bad(
            "a new tensor does not move",
            """
            def noise(size, device):
                z = torch.randn(size)
                z.to(device)  # error
                return z
            """,
        ),
        Good(
            "a module moves in place",
            """
            def prepare(device):
                model = nn.Linear(2, 2)
                model.to(device)
                model.float()
                return model
            """,
        ),
        Good(
            "a batch that is a dict of its own kind moves in place",
            """
            def prepare(tokenizer, texts, device):
                inputs = tokenizer(texts, return_tensors="pt")
                inputs.to(device)
                return inputs
            """,
        ),
        Good(
            "in place",
            """
            def update(hidden):
                state = torch.tanh(hidden)
                state.detach_()
                state.clamp_(0, 1)
                return state
            """,
        ),
        Good(
            "called for what it raises",
            """
            import pytest
            import torch

            def test_shape():
                x = torch.ones(2, 2)
                with pytest.raises(IndexError):
                    x.squeeze(5)
            """,
        ),
        Good(
            "called to wake the device up",
            """
            def warm_up():
                torch.zeros(1).cuda()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield the calls before which nothing on the line takes their result."""
        for called in _STATEMENT.finditer(text):
            if called[1] == "self" or _is_module(text, called) or not _is_alone(text, called):
                continue
            yield called.end() - 1

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for calls that stand alone although nothing but their result counts."""
        for trace in file.traces:
            for call in trace.calls:
                if call.discarded and call.method in _METHODS and _is_lost(call):
                    yield self._report(call)

    def _report(self, call: Call) -> Finding:
        name = call.receiver_text
        return self.finding(
            call.place,
            f"`{call.text}` returns a new tensor and leaves `{name}` as it is; the result is "
            "thrown away",
            f"keep it: `{name} = {call.text}`",
            Fix(
                (
                    Edit("insert-after", call.place, f"{name} = {call.text}"),
                    Edit("delete", call.place),
                ),
                safe=False,
            ),
        )


def _is_module(text: str, called: re.Match[str]) -> bool:
    """Whether a call moves a module: by its name, or as an attribute that some class makes."""
    name = called[1]
    if not _MOVE.search(called[0]):
        return False
    if _MODULE.search(name):
        return True
    if not name.startswith("self."):
        return False
    ends = [at + len(name) for at in uses(text, name)]
    bound = [end for end in ends if _BOUND.match(text, end)]
    return bool(bound) and all(_MADE.match(text, end) for end in bound)


def _is_alone(text: str, called: re.Match[str]) -> bool:
    """Whether a call at the beginning of a line is a statement of its own."""
    rest = _REST.match(text, called.end())
    if rest is not None and rest[1]:
        return False
    before = text[: called.start()].rstrip()
    last = before[before.rfind("\n") + 1 :]
    return _COMMENT.sub("", last).rstrip()[-1:] not in _GOES_ON


def _is_lost(call: Call) -> bool:
    receiver = call.receiver
    if receiver is None or call.qualified or not _NAME.match(call.receiver_text):
        return False
    if call.text.endswith("_()") or _is_tried(call):
        return False
    found = options(receiver)
    moves = call.method in ("to", "cuda", "cpu", "float", "half", "double", "long")
    return all(_is_tensor(option, allow_model=not moves) for option in found)


def _is_tried(call: Call) -> bool:
    """Whether the statement stands where it may be run for what it raises or costs."""
    for frame in call.context:
        if isinstance(frame, Try) and frame.arm == "body":
            return True
        if isinstance(frame, With) and _TRIED.search(frame.file.lines[frame.line - 1]):
            return True
    return False


def _is_tensor(value: Value, *, allow_model: bool) -> bool:
    if isinstance(value, Operation):
        return value.operator in ("+", "-", "*", "/", "@", "**") and any(
            _is_tensor(option, allow_model=allow_model)
            for operand in value.operands
            for option in options(operand)
        )
    if isinstance(value, Attribute):
        return value.name == "grad"
    if not isinstance(value, Result):
        return False
    call = value.call
    if call.qualified:
        return bool(_TENSOR_FUNCTION.match(call.qualified))
    if call.receiver is not None and _TENSOR_METHOD.match(call.method):
        return any(_is_tensor(option, allow_model=allow_model) for option in options(call.receiver))
    return allow_model and is_forward(call) and not isinstance(call.callee, Imported)
