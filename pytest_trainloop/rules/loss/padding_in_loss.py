"""The rule `padding-in-loss`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule, is_code
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    Constant,
    Element,
    FileFacts,
    Loop,
    Operation,
    Result,
    Trace,
    Value,
    constant,
    is_forward,
    loops_of,
    options,
    same,
    spelling,
)

#: Values of a tokenizer's `padding` that pad whatever is given.
_ALWAYS = ("max_length",)
#: Values that pad the shorter texts of several.
_LONGEST = (True, "longest")
#: Methods and functions that copy or move a tensor, and leave its numbers alone.
_COPYING = frozenset(
    {"clone", "to", "cuda", "cpu", "detach", "copy", "deepcopy", "contiguous", "long", "squeeze"}
)


#: A tokenizer that is told to pad, in lower case: a pattern for both cases takes ten times as long.
_PADDING = re.compile(r"tok\w*(?:\.\w+)*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*?\bpadding\s*=")
_LABELLED = re.compile(r"\blabels\s*=(?!=)")


class PaddingInLoss(Rule):
    """The padding of a batch counts as something to learn.

    Symptom: the loss looks great from the start, the lower the more padding there is, and what
    the model has learned best is to emit padding.

    Why: `labels` that are a copy of padded `input_ids` ask for the padding token at every padded
    place. The loss leaves out only the label -100; the attention mask does not concern it.

    What torch does: nothing. `ignore_index` is -100 unless it is told otherwise, and the id of
    the padding token is a class like any other.

    Limits: reported where the tokenizer's call, with its `padding`, and the model's call are in
    sight of each other. What a data collator does to the labels later is not seen, so labels
    that are only put into a data set are not reported.
    """

    since = "0.1"
    triggers = ("labels=|labels =", "padding=|padding =", "input_ids")
    sources = (
        "https://huggingface.co/docs/transformers/tasks/language_modeling",
        "https://github.com/huggingface/transformers/issues/2759",
        "https://github.com/meta-llama/llama-cookbook/issues/73",
    )
    examples = (
        Bad(
            "the labels are the padded input",
            """
            def train(model, tokenizer, loader, optimizer):
                for texts in loader:
                    batch = tokenizer(texts, padding=True, return_tensors="pt")
                    optimizer.zero_grad()
                    loss = model(**batch, labels=batch["input_ids"]).loss  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "padded places are labelled -100",
            """
            def train(model, tokenizer, loader, optimizer):
                for texts in loader:
                    batch = tokenizer(texts, padding=True, return_tensors="pt")
                    labels = batch["input_ids"].clone()
                    labels[batch["attention_mask"] == 0] = -100
                    optimizer.zero_grad()
                    loss = model(**batch, labels=labels).loss
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a copy, in a name of its own",
            """
            def step(model, tokenizer, texts):
                enc = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
                labels = enc.input_ids.clone()
                out = model(
                    input_ids=enc.input_ids,
                    attention_mask=enc.attention_mask,
                    labels=labels,  # error
                )
                return out.loss
            """,
        ),
        Bad(
            "the padded answers of a sequence-to-sequence model",
            """
            def train(model, tokenizer, loader, optimizer):
                for questions, answers in loader:
                    batch = tokenizer(questions, padding=True, return_tensors="pt").to("cuda")
                    labels = tokenizer(answers, padding=True, return_tensors="pt").input_ids
                    optimizer.zero_grad()
                    out = model(**batch, labels=labels.to("cuda"))  # error
                    out.loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "masked with another method",
            """
            def train(model, tokenizer, loader, optimizer):
                for texts in loader:
                    batch = tokenizer(texts, padding=True, return_tensors="pt")
                    ids = batch["input_ids"]
                    labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
                    optimizer.zero_grad()
                    model(**batch, labels=labels).loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "one text, which nothing pads",
            """
            def perplexity(model, tokenizer, text):
                enc = tokenizer("Hello there", padding=True, return_tensors="pt")
                return model(**enc, labels=enc["input_ids"]).loss.exp().item()
            """,
        ),
        Good(
            "packed sequences without padding",
            """
            def train(model, tokenizer, loader, optimizer):
                for texts in loader:
                    batch = tokenizer(texts, truncation=True, return_tensors="pt")
                    optimizer.zero_grad()
                    model(**batch, labels=batch["input_ids"]).loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a collator masks the labels later",
            """
            def tokenize(tokenizer, examples):
                batch = tokenizer(examples["text"], padding="max_length")
                batch["labels"] = batch["input_ids"].copy()
                return batch
            """,
        ),
        Good(
            "class labels",
            """
            def train(model, tokenizer, loader, optimizer):
                for texts, y in loader:
                    batch = tokenizer(texts, padding=True, return_tensors="pt")
                    optimizer.zero_grad()
                    model(input_ids=batch["input_ids"], labels=y).loss.backward()
                    optimizer.step()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where labels are given, in a file that lets a tokenizer pad."""
        if any(is_code(text, match.start()) for match in _PADDING.finditer(text.lower())):
            yield from (match.start() for match in _LABELLED.finditer(text))

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow the `labels` of each forward back to the tokenizer."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                labels = call.keywords.get("labels")
                if labels is None or not is_forward(call) or id(call.node) in told:
                    continue
                tokenizing = _padded_by(labels)
                if tokenizing is None or _is_changed(trace, labels):
                    continue
                told.add(id(call.node))
                yield self._report(call, tokenizing)

    def _report(self, call: Call, tokenizing: Call) -> Finding:
        labels = call.argument_text(None, "labels")
        padding = tokenizing.argument_text(None, "padding")
        return self.finding(
            call.argument_place(None, "labels"),
            f"`{labels}` asks for the padding too: `{tokenizing.name}` (line {tokenizing.line}) "
            f"pads with `padding={padding}`, and no label is -100",
            "label the padded places -100, which the loss leaves out: "
            "`labels = input_ids.masked_fill(attention_mask == 0, -100)`",
        )


def _padded_by(labels: Value) -> Call | None:
    """The call of a tokenizer whose padded `input_ids` the labels are, and nothing else."""
    found = [_tokenizing(option) for option in options(labels)]
    return found[0] if found and all(found) else None


def _tokenizing(value: Value) -> Call | None:
    while isinstance(value, Result) and value.call.method in _COPYING:
        call = value.call
        source = call.args[0] if call.qualified and call.args else call.receiver
        if source is None or len(options(source)) != 1:
            return None
        value = options(source)[0]
    encoded = _input_ids_of(value)
    for option in options(encoded) if encoded is not None else ():
        if isinstance(option, Result) and _pads(option.call):
            return option.call
    return None


def _input_ids_of(value: Value) -> Value | None:
    """The encoding whose `input_ids` a value is."""
    if isinstance(value, Attribute) and value.name == "input_ids":
        return value.base
    if isinstance(value, Element) and constant(value.key) == "input_ids":
        return value.base
    return None


def _pads(call: Call) -> bool:
    """Whether a tokenizer is called so that it pads: several texts, or to a fixed length."""
    padding = constant(call.keywords.get("padding"))
    if "tokenizer" not in spelling(call.callee).lower() and "tok" not in call.name.lower():
        return False
    if padding in _ALWAYS:
        return True
    return padding in _LONGEST and bool(call.args) and _are_several(call, call.args[0])


def _are_several(call: Call, texts: Value) -> bool:
    """Whether the tokenizer is surely given a list of texts: from a loader, or written down."""
    if isinstance(texts, Constant | Operation):
        return False
    if any(getattr(option, "kind", "") in ("list", "listcomp") for option in options(texts)):
        return True
    return any(
        _yields_batches(loop) and _comes_from(texts, loop) for loop in loops_of(call.context)
    )


def _yields_batches(loop: Loop) -> bool:
    return "loader" in loop.header.lower() or "batch" in loop.header.lower()


def _comes_from(value: Value, loop: Loop) -> bool:
    while not same(value, loop.source):
        base = getattr(value, "base", None)
        if base is None:
            return False
        value = base
    return True


def _is_changed(trace: Trace, labels: Value) -> bool:
    """Whether some of the labels are set to something else in place."""
    for store in trace.stores:
        if store.kind == "item" and store.owner is not None and same(store.owner, labels):
            return True
    return any(
        call.method.endswith("_") and call.receiver is not None and same(call.receiver, labels)
        for call in trace.calls
    )
