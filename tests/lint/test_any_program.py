"""Whatever Python can parse is linted without a crash, and the same way each time."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import hypothesmith
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_trainloop.lint.lint_file import FileLinter
from pytest_trainloop.lint.result import FileResult
from pytest_trainloop.rules import all_rules

RULES = {name: rule for name, rule in all_rules().items() if rule.sees_source()}
#: Opens the gate of every rule, so that all of them see whatever stands below.
WORDS = sorted(
    {word for r in RULES.values() for trigger in r.triggers for word in trigger.split("|")}
)
PRELUDE = f"import torch  # {' '.join(WORDS)}\n"
STANDARD_LIBRARY = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
#: What may be said of a program that Python can parse.
FAIR = ("it is nested too deeply", "it is not Python")


def lint(code: str) -> FileResult:
    return FileLinter(RULES, ["a.py"]).lint_bytes("a.py", (PRELUDE + code).encode())


def unfair(result: FileResult) -> list[str]:
    return [e.message for e in result.errors if not any(fair in e.message for fair in FAIR)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(hypothesmith.from_grammar())
def test_no_program_of_the_grammar_crashes_a_rule(code: str) -> None:
    result = lint(code)
    assert unfair(result) == []
    assert lint(code) == result


STATEMENTS = [
    "loss = model(x)",
    "loss.backward()",
    "optimizer.step()",
    "optimizer.zero_grad()",
    "optimizer = torch.optim.SGD(model.parameters(), 0.1)",
    "model.eval()",
    "model.train()",
    "total += loss",
    "scaler.scale(loss).backward()",
    "torch.save({'model': model.state_dict()}, path)",
    "scheduler.step()",
    "self.losses.append(loss)",
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    "return loss",
    "yield loss",
    "del loss",
    "global total",
    "from . import steps",
    "train(model, loader, optimizer, *args, **kwargs)",
    "loss = (lambda model: model(x))(model)",
    "[loss.backward() for loss in losses]",
    "match loss:\n    case [a, *_]: a.backward()",
]
HEADERS = [
    "for x, y in loader:",
    "while True:",
    "if step % 4 == 0:",
    "with torch.no_grad():",
    "def train(model, loader, optimizer, *args, **kwargs):",
    "class Trainer(Base):",
    "async def train(self):",
    "try:",
]


@st.composite
def programs(draw: st.DrawFn, depth: int = 0) -> str:
    """Training code put together at random."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        header = draw(st.sampled_from([*HEADERS, None, None, None])) if depth < 4 else None
        if header is None:
            text = draw(st.sampled_from(STATEMENTS))
        else:
            body = draw(programs(depth + 1))
            text = f"{header}\n" + "".join(f"    {line}\n" for line in body.splitlines())
            if header == "try:":
                text += "except Exception as error:\n    pass\n"
        lines += text.splitlines()
    return "\n".join(lines) + "\n"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_training_code_crashes_a_rule(code: str) -> None:
    result = lint(code)
    assert unfair(result) == []
    assert lint(code) == result
    last = code.count("\n") + 2
    for finding in result.findings:
        place = finding.place
        assert (1, 1) <= (place.line, place.column) < (place.end_line, place.end_column)
        assert place.end_line <= last


@pytest.mark.parametrize("path", STANDARD_LIBRARY[::10], ids=os.path.basename)
def test_no_file_of_the_standard_library_crashes_a_rule(path: Path) -> None:
    assert unfair(lint(path.read_text(encoding="utf-8", errors="replace"))) == []
