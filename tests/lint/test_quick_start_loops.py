"""Loops as the frameworks' quick starts write them, and nanoGPT's: nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_trainloop.lint.cli import main

#: The loops that are watched in the tests of the run side, and over-fitted by `@overfits`.
LOOPS = Path(__file__).parents[1] / "runtime" / "training_loops.py"


@pytest.mark.parametrize("style", ["nanogpt", "accelerate", "hugging_face_trainer", "_lightning"])
def test_the_quick_start_is_among_the_loops(style: str) -> None:
    """So that the next test is about them."""
    assert f"def {style}(" in LOOPS.read_text()


def test_sound_loops_are_linted_silently() -> None:
    """Two dozen styles of loop, every default rule, no finding."""
    result = CliRunner().invoke(main, ["--no-cache", "--isolated", str(LOOPS)])
    assert (result.exit_code, result.output) == (0, "no problems in 1 file\n")


def test_the_silence_is_not_blindness(tmp_path: Path) -> None:
    """Without its `zero_grad`, the first of the loops is reported."""
    broken = tmp_path / "training_loops.py"
    broken.write_text(LOOPS.read_text().replace("            optimizer.zero_grad()\n", "", 1))
    result = CliRunner().invoke(main, ["--no-cache", "--isolated", str(broken)])
    assert result.exit_code == 1
    assert "missing-zero-grad" in result.output
