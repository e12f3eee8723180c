"""Each kind of edit, on code as people lay it out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_trainloop.lint.fix import CannotFixError, Parsed, splices_of
from pytest_trainloop.lint.fix.splices import spliced
from pytest_trainloop.rules import Edit, Fix
from pytest_trainloop.source.facts import Place


def place_of(text: str, part: str, nth: int = 0) -> Place:
    """The place of the n-th occurrence of `part` in the text."""
    begin = [match.start() for match in re.finditer(re.escape(part), text)][nth]

    def counted(offset: int) -> tuple[int, int]:
        lines = re.split(r"\r\n|\r|\n", text[:offset])
        return len(lines), len(lines[-1]) + 1

    return Place("train.py", *counted(begin), *counted(begin + len(part)))


def edited(text: str, kind: Any, part: str, code: str = "", to: str = "", nth: int = 0) -> str:
    """The text after one edit at the n-th `part`."""
    edit = Edit(kind, place_of(text, part, nth), code, place_of(text, to) if to else None)
    return spliced(text, splices_of(Parsed(text), Fix((edit,), safe=True)))


@pytest.mark.parametrize(
    ("before", "part", "code", "after"),
    [
        ("total += loss\n", "loss", ".detach()", "total += loss.detach()\n"),
        ("total += a + b\n", "a + b", ".item()", "total += (a + b).item()\n"),
        ("total += (a + b)\n", "a + b", ".item()", "total += (a + b).item()\n"),
        ("kept.append(a + b)\n", "a + b", ".item()", "kept.append((a + b).item())\n"),
        ("kept.append(loss)\n", "loss", ".item()", "kept.append(loss.item())\n"),
        ("x = await loss()\n", "await loss()", ".item()", "x = (await loss()).item()\n"),
        ("x = -loss\n", "-loss", ".item()", "x = (-loss).item()\n"),
        ("x = -loss\n", "loss", ".item()", "x = -loss.item()\n"),
        ("x = 3\n", "3", ".real", "x = (3).real\n"),
        ("loss.backward()\n", "loss", " / steps", "(loss / steps).backward()\n"),
        ("x = (a +\r\n b +\n c)\n", "a +\r\n b +\n c", ".d", "x = (a +\r\n b +\n c).d\n"),
        ("(a + b).backward()\n", "a + b", " / steps", "((a + b) / steps).backward()\n"),
        ("x = a if b else c\n", "a if b else c", ".item()", "x = (a if b else c).item()\n"),
        ("k = [loss, loss]\n", "loss", ".item()", "k = [loss.item(), loss]\n"),
        ("x = (\n  a +  # one\n  b)\n", "a +  # one\n  b", ".c", "x = (\n  a +  # one\n  b).c\n"),
        ("x = (a +\r\n  b)\r\n", "a +\r\n  b", ".c", "x = (a +\r\n  b).c\r\n"),
        ("x, y = 1, 2\n", "1, 2", ".c", "x, y = (1, 2).c\n"),
    ],
)
def test_append_puts_parentheses_exactly_where_precedence_needs_them(
    before: str, part: str, code: str, after: str
) -> None:
    """The code belongs to the whole expression, and nothing is written twice."""
    assert edited(before, "append", part, code) == after


@pytest.mark.parametrize(
    ("before", "part", "code", "after"),
    [
        ("f(loss.item)\n", "loss.item", "loss.item()", "f(loss.item())\n"),
        ("x = a * loss\n", "loss", "b + c", "x = a * (b + c)\n"),
        ("x = loss\n", "loss", "b + c", "x = b + c\n"),
        ("loss.backward()\n", "loss", "a + b", "(a + b).backward()\n"),
        ("f(loss)\n", "loss", "x for x in y", "f(x for x in y)\n"),
        ("f(loss, 1)\n", "loss", "x for x in y", "f((x for x in y), 1)\n"),
        ("f(loss, 1)\n", "loss", "lambda: 0", "f(lambda: 0, 1)\n"),
        ("é = 'ß' + loss\n", "loss", "x", "é = 'ß' + x\n"),
    ],
)
def test_replace_puts_parentheses_exactly_where_precedence_needs_them(
    before: str, part: str, code: str, after: str
) -> None:
    """Also behind characters that take several bytes."""
    assert edited(before, "replace", part, code) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f()", "f(k=1)"),
        ("f(a)", "f(a, k=1)"),
        ("f(a,)", "f(a, k=1,)"),
        ("f(a, *b, **c)", "f(a, *b, **c, k=1)"),
        ("f(\n    a,\n    b,\n)", "f(\n    a,\n    b,\n    k=1,\n)"),
        ("f(\n    a,\n    b\n)", "f(\n    a,\n    b,\n    k=1\n)"),
        ("f(\n    a,\n)", "f(\n    a,\n    k=1,\n)"),
        ("f(a,\n  b)", "f(a,\n  b,\n  k=1)"),
        ("f(\n    a,  # one\n    b,  # two\n)", "f(\n    a,  # one\n    b,  # two\n    k=1,\n)"),
        ("f(\n    a,  # one\n    b  # two\n)", "f(\n    a,  # one\n    b,  # two\n    k=1\n)"),
        ("f((a))", "f((a), k=1)"),
        ("f(\n    a, b  # two\n)", "f(\n    a, b,  # two\n    k=1\n)"),
        ("f(\n    a, b,  # two\n)", "f(\n    a, b,  # two\n    k=1,\n)"),
        ("f(a, b  # two\n)", "f(a, b,  # two\nk=1\n)"),
        ("f(x for x in y)", "f((x for x in y), k=1)"),
        ("f(a, k=0, b=2)", "f(a, k=1, b=2)"),
        ("f(\r\n\ta,\r\n)", "f(\r\n\ta,\r\n\tk=1,\r\n)"),
    ],
)
def test_an_argument_is_added_in_the_layout_of_the_call(before: str, after: str) -> None:
    """Trailing commas, comments and one argument a line stay as they are; no argument twice."""
    assert edited(f"x = {before}\n", "add-argument", before, "k=1") == f"x = {after}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("step()\n", "step()\nzero()\n"),
        ("step()", "step()\nzero()"),
        ("step()  # now\nlog()\n", "step()  # now\nzero()\nlog()\n"),
        ("for x in y:\n\tstep()\n\tlog()\n", "for x in y:\n\tstep()\n\tzero()\n\tlog()\n"),
        ("for x in y:\r\n  step()\r\n", "for x in y:\r\n  step()\r\n  zero()\r\n"),
        ("step(\n    closure,\n)\nlog()\n", "step(\n    closure,\n)\nzero()\nlog()\n"),
        ("step(); log()\n", "step(); zero(); log()\n"),
        ("log(); step()\n", "log(); step()\nzero()\n"),
        ("log(); step();  # both\n", "log(); step();  # both\nzero()\n"),
        ("for x in y: step()\n", "for x in y: step(); zero()\n"),
        ("for x in y: log(); step(); log()\n", "for x in y: log(); step(); zero(); log()\n"),
        ("x = 1\n\f\nstep()\n", "x = 1\n\f\nstep()\nzero()\n"),
        ("if x:\n    a()\n\f    step()\n", "if x:\n    a()\n\f    step()\n    zero()\n"),
        ("x = step(\n) \\\n\nlog()\n", "x = step(\n); zero() \\\n\nlog()\n"),
    ],
)
def test_a_statement_is_inserted_after_another(before: str, after: str) -> None:
    """On a line of its own in the same block, or behind a semicolon where there is no line."""
    assert edited(before, "insert-after", "step(", "zero()") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("step()\n", "zero()\nstep()\n"),
        ("# update\nstep()\n", "zero()\n# update\nstep()\n"),
        ("# file\n\nstep()\n", "# file\n\nzero()\nstep()\n"),
        ("log(); step()\n", "log(); zero(); step()\n"),
        ("if x: step()\n", "if x: zero(); step()\n"),
        ('log("""\n# no comment""")\nstep()\n', 'log("""\n# no comment""")\nzero()\nstep()\n'),
        ("if log('''\n# no'''):\n  step()\n", "if log('''\n# no'''):\n  zero()\n  step()\n"),
        ("if x:\n    log()\n    # x\nstep()\n", "if x:\n    log()\n    # x\nzero()\nstep()\n"),
    ],
)
def test_a_statement_is_inserted_before_another(before: str, after: str) -> None:
    """Above the comment that belongs to it, which may not be text in a string."""
    assert edited(before, "insert-before", "step()", "zero()") == after


def test_a_statement_is_inserted_after_a_loop_and_the_comments_in_it() -> None:
    """A comment that is indented like the body is part of the body."""
    before = "for x in y:\n    step()\n    # last\n# next\nlog()\n"
    after = "for x in y:\n    step()\n    # last\nsave()\n# next\nlog()\n"
    assert edited(before, "insert-after", "for x in y:\n    step()", "save()") == after


def test_inserted_code_of_several_lines_gets_the_indentation_of_the_file() -> None:
    """An edit is written with four spaces, the file may have tabs."""
    before = "def f():\n\tstep()\n"
    after = "def f():\n\tif x:\n\t\tzero()\n\n\t\tlog()\n\tstep()\n"
    assert edited(before, "insert-before", "step()", "if x:\n    zero()\n\n    log()") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a()\nstep()\nb()\n", "a()\nb()\n"),
        ("a()\nstep()  # bye\nb()\n", "a()\nb()\n"),
        ("a()\nstep()", "a()"),
        ("a()\r\nstep()", "a()"),
        ("step()\n", ""),
        ("if x:\n    step()\n", "if x:\n    pass\n"),
        ("if x:\n    step()  # bye\nb()\n", "if x:\n    pass\nb()\n"),
        ("if x:\n    # bye\n    step()\n", "if x:\n    pass\n"),
        ("if x: step()  # stays\n", "if x: pass  # stays\n"),
        ("if x: a(); step()\n", "if x: a()\n"),
        ("if x: step(); a()\n", "if x: a()\n"),
        ("a(); step(); b()\n", "a(); b()\n"),
        ("a(); step();  # c\n", "a();  # c\n"),
        ("a()\n\n# about it\nstep()\n\nb()\n", "a()\n\n\nb()\n"),
        ("# a\n# the optimizer steps\nstep()\nb()\n", "b()\n"),
        ("# backward and update\nstep()\nb()\n", "# backward and update\nb()\n"),
        ("# take a step\nstep()\nb()\n", "b()\n"),
    ],
)
def test_a_statement_goes_with_the_comments_that_are_about_it(before: str, after: str) -> None:
    """A comment above several statements stays; a block does not become empty."""
    assert edited(before, "delete", "step()") == after


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        ("clip()\nback()\nstep()\n", "move-after", "back()\nclip()\nstep()\n"),
        ("a()\nback()\nclip()\n", "move-before", "a()\nclip()\nback()\n"),
        ("back()\nx()\nclip()", "move-after", "back()\nclip()\nx()"),
        ("clip()  # hard\nback()\n", "move-after", "back()\nclip()  # hard\n"),
        ("# clip hard\nclip()\nback()\nb()\n", "move-after", "back()\n# clip hard\nclip()\nb()\n"),
        ("# all\nclip()\nback()\nb()\n", "move-after", "# all\nback()\nclip()\nb()\n"),
        ("if x:\n    clip()\nback()\n", "move-after", "if x:\n    pass\nback()\nclip()\n"),
        ("if x:\n    back()\nclip()\n", "move-after", "if x:\n    back()\n    clip()\n"),
        (
            "if x:\n  back()\nclip(\n  1,\n  '''\n  2''')\n",
            "move-after",
            "if x:\n  back()\n  clip(\n    1,\n    '''\n  2''')\n",
        ),
        ("clip(); back()\n", "move-after", "back()\nclip()\n"),
        ("if x: clip(); back(); z()\n", "move-after", "if x: back(); clip(); z()\n"),
        ("if x: back()\nclip()\n", "move-after", "if x: back(); clip()\n"),
    ],
)
def test_a_statement_moves_with_its_comments(before: str, kind: str, after: str) -> None:
    """It takes the indentation of its new block; lines inside a string keep theirs."""
    assert edited(before, kind, "clip(", to="back()") == after


def test_a_compound_statement_moves_as_a_whole() -> None:
    """Deeper lines keep their depth below the statement."""
    before = "for p in ps:\n    # clear\n    p.grad = None\nif x:\n    back()\n"
    after = "if x:\n    back()\n    for p in ps:\n        # clear\n        p.grad = None\n"
    assert edited(before, "move-after", "for p in ps:", to="back()") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a()\nb()\nc()\n", "with n:\n    a()\n    b()\nc()\n"),
        ("if x:\n\ta()\n\tb()\n", "if x:\n\twith n:\n\t\ta()\n\t\tb()\n"),
        ("if x:\n  a()\n\n  # c\n  b()\n", "if x:\n  with n:\n    a()\n\n    # c\n    b()\n"),
        ("a()\r\nb()\r\n", "with n:\r\n    a()\r\n    b()\r\n"),
        ("a(); x()\nb()\n", "with n:\n    a(); x()\n    b()\n"),
        ("a()\ns = '''\nt\n'''\nb()", "with n:\n    a()\n    s = '''\nt\n'''\n    b()"),
        ("a()\ns = f'''\n{t}\n'''\nb()", "with n:\n    a()\n    s = f'''\n{t}\n'''\n    b()"),
        ("# first\na()\nb()  # b\n", "# first\nwith n:\n    a()\n    b()  # b\n"),
        ("if x:\n\f  a()\n  b()\n", "if x:\n  with n:\n\f    a()\n    b()\n"),
    ],
)
def test_statements_are_wrapped(before: str, after: str) -> None:
    """All lines go one level deeper, but for those inside a string and empty ones."""
    assert edited(before, "wrap", "a()", "with n:", to="b()") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f():\n    pass\n", "@no_grad()\ndef f():\n    pass\n"),
        ("@a\n@b  # b\ndef f(): pass\n", "@a\n@b  # b\n@no_grad()\ndef f(): pass\n"),
        (
            "class A:\r\n\tasync def f(self): pass\r\n",
            "class A:\r\n\t@no_grad()\r\n\tasync def f(self): pass\r\n",
        ),
    ],
)
def test_a_function_is_decorated_below_the_decorators_it_has(before: str, after: str) -> None:
    """A decorator such as `@property` must stay outermost."""
    assert edited(before, "decorate", "f(", "no_grad()") == after
    assert edited(before, "decorate", "f(", "@no_grad()") == after


def test_the_edits_of_one_fix_are_made_together() -> None:
    """They name places in the text as it was."""
    text = "if x:\n    old()\nlog(loss)\n"
    fix = Fix(
        (
            Edit("insert-before", place_of(text, "old()"), "new()"),
            Edit("insert-before", place_of(text, "old()"), "newer()"),
            Edit("delete", place_of(text, "old()")),
            Edit("append", place_of(text, "loss"), ".item()"),
        ),
        safe=True,
    )
    after = "if x:\n    new()\n    newer()\nlog(loss.item())\n"
    assert spliced(text, splices_of(Parsed(text), fix)) == after


@pytest.mark.parametrize(
    ("text", "kind", "part", "code", "to"),
    [
        ("if x: y()\n", "insert-after", "y()", "if a:\n    b()", ""),
        ("if x:\n    y()\nelif z:\n    w()\n", "insert-before", "z", "a()", ""),
        ('"""Text."""\n', "insert-before", '"""Text."""', "a()", ""),
        ("from __future__ import x\n", "insert-before", "x", "a()", ""),
        ("if x: y()\n", "wrap", "y()", "with n:", "y()"),
        ("a()\nif x:\n    b()\n", "wrap", "a()", "with n:", "b()"),
        ("b()\na()\n", "wrap", "a()", "with n:", "b()"),
        ("f(x)\n", "append", "f(", ".y", ""),
        ("f(x)\n", "add-argument", "x", "k=1", ""),
        ("f(x)\n", "add-argument", "f(x)", "k", ""),
        ("f(x)\n", "replace", "x", "y = 1", ""),
        ("f(x)\n", "append", "x", " = 1", ""),
        ("f(x)\n", "append", "x", "1", ""),
        ("\n# x\n", "delete", "x", "", ""),
        ("f(x)\n", "decorate", "x", "d", ""),
        ("x = lambda: y\n", "decorate", "y", "d", ""),
        ("a()\n", "move-after", "a()", "", "a()"),
        ("for x in y:\n    a()\n", "move-after", "for x in y", "", "a()"),
        ("a(\n", "delete", "a(", "", ""),
    ],
)
def test_what_cannot_be_done_without_touching_more_is_not_done(
    text: str, kind: str, part: str, code: str, to: str
) -> None:
    """The fix is declined, never half made."""
    with pytest.raises(CannotFixError):
        edited(text, kind, part, code, to)


def test_a_place_outside_of_the_text_is_declined() -> None:
    """A rule that names a wrong place cannot do harm."""
    for place in (Place("t.py", 9, 1, 9, 2), Place("t.py", 0, 1, 1, 2)):
        with pytest.raises(CannotFixError):
            splices_of(Parsed("x = 1\n"), Fix((Edit("delete", place),), safe=True))


def test_edits_that_take_the_same_code_away_are_declined() -> None:
    """Neither of them is made."""
    place = place_of("a()\nb()\n", "a()")
    fix = Fix((Edit("delete", place), Edit("append", place, ".c")), safe=True)
    with pytest.raises(CannotFixError):
        splices_of(Parsed("a()\nb()\n"), fix)
