"""Notebooks: linted as one program, told by cell and line, written back as they were."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_trainloop.lint.document import UnreadableError, document_from_bytes
from tests.lint.project import MakeProject

SETUP = "%matplotlib inline\nimport torch\n\n!pip install torch\nmodel = torch.nn.Linear(1, 1)"
OPTIMIZER = "optimizer = torch.optim.SGD(model.parameters(), 0.1)\nmodel?"
LOOP = (
    "%%time\nfor x, y in loader:\n    loss = (model(x) - y).square().mean()\n"
    "    loss.backward()\n    optimizer.step()\n"
)


def code(source: str | list[str], **more: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
        **more,
    }


def notebook(*cells: dict[str, Any], indent: int | None = 1, **more: Any) -> bytes:
    """A notebook as Jupyter writes it."""
    content = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **more}
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode()


def lines_of(source: str) -> list[str]:
    return source.splitlines(keepends=True)


TRAINING = (
    {"cell_type": "markdown", "metadata": {}, "source": ["# Training\n", "loss.backward()"]},
    code(lines_of(SETUP)),
    code(lines_of(OPTIMIZER)),
    code("%%bash\nls -l"),
    code(lines_of(LOOP)),
)


def test_a_problem_is_told_by_cell_and_line(project: MakeProject) -> None:
    made = project({"train.ipynb": notebook(*TRAINING)})
    (problem,) = made.json(".").problems
    assert (problem["path"], problem["cell"], problem["line"], problem["column"]) == (
        "train.ipynb",
        4,
        4,
        5,
    )
    text = made.lint("train.ipynb").out
    assert text.startswith("train.ipynb:cell 4:4:5: missing-zero-grad: ")
    assert "  4 |     loss.backward()\n" in text


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_a_fix_changes_nothing_but_its_line(project: MakeProject, indent: int | None) -> None:
    before = notebook(*TRAINING, indent=indent)
    made = project({"train.ipynb": before})
    assert made.lint("train.ipynb", "--unsafe-fixes").exit_code == 0
    after = (made.root / "train.ipynb").read_bytes()
    fixed = [*lines_of(LOOP), "    optimizer.zero_grad()\n"]
    assert after == notebook(*TRAINING[:-1], code(fixed), indent=indent)


def test_magics_stay_as_they_were_when_their_cell_is_fixed(project: MakeProject) -> None:
    loop = "for x in [1]:\n    !echo {x}\n    files = !ls\n    loss = model(x).sum()\n"
    loop += "    loss.backward()\n    optimizer.step()\n    %timeit f(x) \\\n      g(x)"
    made = project({"t.ipynb": notebook(code(SETUP), code(OPTIMIZER), code(loop))})
    assert made.lint("t.ipynb", "--unsafe-fixes").exit_code == 0
    after = json.loads((made.root / "t.ipynb").read_text())
    assert after["cells"][2]["source"] == loop.replace(
        "    optimizer.step()\n", "    optimizer.step()\n    optimizer.zero_grad()\n"
    )
    assert after["cells"][0]["source"] == SETUP


def test_a_suppression_counts_in_a_notebook(project: MakeProject) -> None:
    loop = LOOP.replace("loss.backward()", "loss.backward()  # trainloop: ignore[gradients]")
    made = project({"t.ipynb": notebook(code(SETUP), code(OPTIMIZER), code(loop))})
    assert made.lint("t.ipynb").exit_code == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is not a notebook: not JSON (Expecting value)"),
        (b'{"cells": [', "it is not a notebook: not JSON (Expecting value)"),
        (b"[]", "it is not a notebook of version 4: it has no list of cells"),
        (b'{"worksheets": []}', "it is not a notebook of version 4: it has no list of cells"),
        (b"\xff\xfe", "it is not a notebook: not UTF-8 text"),
        (b"[" * 100_000, "it is not a notebook: JSON nested too deep"),
    ],
)
def test_a_broken_notebook_is_named_in_one_line(
    project: MakeProject, data: bytes, message: str
) -> None:
    said = project({"a.ipynb": data}).json(".")
    assert (said.exit_code, said.problems) == (2, [])
    assert said.err.startswith("trainloop-lint: a.ipynb")
    assert said.err.endswith(f": cannot be read: {message}\n")
    assert said.err.count("\n") == 1


def test_a_cell_that_is_not_python_is_named(project: MakeProject) -> None:
    said = project({"a.ipynb": notebook(code("x = 1"), code("y = 2\nfor in x:"))}).json(".")
    assert said.exit_code == 2
    assert said.err == (
        "trainloop-lint: a.ipynb:cell 1:2: cannot be read: it is not Python: invalid syntax\n"
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("as_lists", [True, False])
def test_what_shows_the_file_is_told_the_line_of_its_json(
    project: MakeProject, indent: int | None, as_lists: bool
) -> None:
    """A pull request shows the lines of the JSON, not those of a cell."""
    sources = lines_of(LOOP) if as_lists else LOOP
    broken = lines_of("x = 1\nfor\n") if as_lists else "x = 1\nfor\n"
    made = project(
        {
            "train.ipynb": notebook(*TRAINING[:-1], code(sources), indent=indent),
            "z.ipynb": notebook(code("y = 1"), code(broken), indent=indent),
        }
    )
    said = made.lint(".", "--output-format", "github").out
    for path, text in (("train.ipynb", "loss.backward()\\n"), ("z.ipynb", "for\\n")):
        (line,) = re.findall(rf"file={path},line=(\d+)::", said)
        shown = (made.root / path).read_text().split("\n")[int(line) - 1]
        assert text in shown
        # Where each line of code has a line of JSON, it is that one alone.
        assert (shown.strip().strip(',"').strip() == text) == (as_lists and indent == 1)


def test_a_notebook_of_another_language_is_left_alone(project: MakeProject) -> None:
    metadata = {"language_info": {"name": "julia"}}
    made = project({"a.ipynb": notebook(code("begin torch end"), metadata=metadata)})
    assert made.lint(".").exit_code == 0


@pytest.mark.parametrize(
    ("cell", "program"),
    [
        ("%load_ext x", "get_ipython()  # %load_ext x"),
        ("if a:\n    !ls", "if a:\n    get_ipython()  # !ls"),
        ("a = !ls", "a = get_ipython()  # a = !ls"),
        ("a = %env X", "a = get_ipython()  # a = %env X"),
        ("?x", "get_ipython()  # ?x"),
        ("x.y??", "get_ipython()  # x.y??"),
        ("%%html\n<b>\n", "get_ipython()  # %%html\n# <b>\n# "),
        ("\n%%capture out\nx = 1", "\nget_ipython()  # %%capture out\nx = 1"),
        ("x = (1\n  % 2)", "x = (1\n  % 2)"),
        ("s = '''\n%x\n!y\n'''\n%z", "s = '''\n%x\n!y\n'''\nget_ipython()  # %z"),
        ("x = 5 \\\n  % 3", "x = 5 \\\n  % 3"),
        ("a = '(' # (\n!ls", "a = '(' # (\nget_ipython()  # !ls"),
        ("!a \\\n b", "get_ipython()  # !a \\\n#  b"),
        ("# why?\nx = 'what?'", "# why?\nx = 'what?'"),
        ("a != b\nx %= 2", "a != b\nx %= 2"),
        ("await f()", "await f()"),
        ("pip install -q torch", "get_ipython()  # pip install -q torch"),
        ("if a:\n  cd data/x", "if a:\n  get_ipython()  # cd data/x"),
        ("time f(x)", "get_ipython()  # time f(x)"),
        ("ls -l\ntime = 3\nrun(x)\nenv", "ls -l\ntime = 3\nrun(x)\nenv"),
        ("x = '''\npip install\n'''\ncd = [\nx\n]", "x = '''\npip install\n'''\ncd = [\nx\n]"),
    ],
)
def test_the_syntax_of_ipython_becomes_python_on_the_same_lines(cell: str, program: str) -> None:
    document = document_from_bytes("a.ipynb", notebook(code(cell)))
    assert document.text == f"# --- trainloop: notebook cell 0 ---\n{program}\n"
    ast.parse(document.text)


SOURCES = st.one_of(
    st.text(alphabet="ab= \n\r\t%!?#'\"\\(){}é\u2028", max_size=30),
    st.lists(st.sampled_from(["%time f()\n", "x = 1\n", "'''\n", "!ls \\\n", "y?\n", "z"])).map(
        "".join
    ),
)


@given(st.lists(st.tuples(st.sampled_from(["code", "markdown"]), SOURCES)), st.booleans())
@example([("code", "%%a\r "), ("code", "")], True)  # noqa: FBT003 - by position, as drawn
@example([("code", "?\r "), ("code", "")], False)  # noqa: FBT003 - by position, as drawn
def test_any_notebook_gives_back_its_bytes_and_places(
    cells: list[tuple[str, str]], as_lists: bool
) -> None:
    data = notebook(
        *(
            {**code(lines_of(source) if as_lists else source), "cell_type": kind}
            for kind, source in cells
        )
    )
    document = document_from_bytes("a.ipynb", data)
    assert document.encode(document.text) == data
    at = 0
    for index, (kind, source) in enumerate(cells):
        if kind == "code":
            inside = f"{source}\n".replace("\r\n", "\n").replace("\r", "\n").count("\n")
            for line in range(1, inside + 1):
                assert document.locate(at + 1 + line) == (index, line)
            at += inside + 1


@given(st.lists(SOURCES, min_size=1, max_size=3), SOURCES, st.booleans())
def test_a_changed_cell_is_written_and_no_other(
    sources: list[str], added: str, as_lists: bool
) -> None:
    cells = [code(lines_of(source) if as_lists else source) for source in sources]
    document = document_from_bytes("a.ipynb", notebook(*cells))
    mark = "# --- trainloop: notebook cell 0 ---\n"
    extra = [f"x{n} = 0" for n in range(added.count("a"))]
    text = document.text.replace(mark, mark + "".join(f"{line}\n" for line in extra), 1)
    after = json.loads(document.encode(text))
    told = ["".join(cell["source"]) for cell in after["cells"]]
    assert told == ["".join(f"{line}\n" for line in extra) + sources[0], *sources[1:]]


def test_a_program_without_the_marks_between_its_cells_is_refused() -> None:
    document = document_from_bytes("a.ipynb", notebook(code("a = 1"), code("b = 2")))
    for text in ("a = 1\nb = 2\n", document.text.replace("cell 1", "cell one")):
        with pytest.raises(ValueError, match="cell"):
            document.encode(text)


def test_a_notebook_that_is_not_one_is_refused() -> None:
    with pytest.raises(UnreadableError):
        document_from_bytes("a.ipynb", b"import torch\n")
