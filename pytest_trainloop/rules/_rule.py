"""What a rule is: a name, a page, examples, and how it is seen in source and in a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from textwrap import dedent
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.source.facts import FileFacts, Place

#: How a line begins that is a comment, or an example in a docstring.
_NO_CODE = re.compile(r"\s*(?:#|>>> |\.\.\. )")
_MARK = re.compile(r"#\s*error\b")
_OWN_IMPORT = re.compile(r"^\s*(import|from)\s", re.MULTILINE)
_PRELUDE = "import torch; from torch import nn; import torch.nn.functional as F\n"


@dataclass(frozen=True, slots=True)
class Example:
    """A piece of training code, readable on the rule's page and run as its test.

    An example that imports nothing is read as if it began with the usual three
    imports (`torch`, `nn`, `F`), on the line above its first.
    """

    title: str
    code: str
    #: Other files of the same project, by path, that the code imports from.
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The code as it stands on the page."""
        return dedent(self.code).strip("\n") + "\n"

    @property
    def program(self) -> str:
        """The code as it is linted."""
        return self.text if _OWN_IMPORT.search(self.text) else _PRELUDE + self.text

    @property
    def marked_lines(self) -> list[int]:
        """1-based lines of `program` that carry a `# error` mark."""
        lines = self.program.splitlines()
        return [number for number, line in enumerate(lines, 1) if _MARK.search(line)]


@dataclass(frozen=True, slots=True)
class Bad(Example):
    """Code that breaks the rule: each offending line is marked with `# error`."""

    #: The code after the rule's fix, where the rule offers one for this example.
    fixed: str | None = None

    @property
    def fixed_program(self) -> str | None:
        """What `program` becomes by the fix; `# error` marks stay where they are."""
        if self.fixed is None:
            return None
        text = dedent(self.fixed).strip("\n") + "\n"
        return text if _OWN_IMPORT.search(text) else _PRELUDE + text


@dataclass(frozen=True, slots=True)
class Good(Example):
    """Legitimate code, often code that looks like the bad one: no rule may speak."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of the text, written as data; `lint.fix` makes it on the syntax tree.

    `place` is the place of an expression, or of any node inside a statement when the
    edit is about statements. `code` is Python without indentation.

    - `append`: the expression at `place` gets `code` after it (`.detach()`), in
      parentheses where precedence needs them.
    - `replace`: the expression at `place` becomes `code`.
    - `add-argument`: the call at `place` gets the keyword argument `code`.
    - `insert-before`, `insert-after`: a statement `code` of its own, beside the
      statement that holds `place`.
    - `delete`: the statement that holds `place` goes.
    - `move-before`, `move-after`: the statement that holds `place` goes beside the
      one that holds `to`.
    - `decorate`: the function defined at `place` gets the decorator `code`.
    - `wrap`: the statements from the one that holds `place` to the one that holds `to`
      go under the header `code` (`with torch.no_grad():`).
    """

    kind: Literal[
        "append",
        "replace",
        "add-argument",
        "insert-before",
        "insert-after",
        "delete",
        "move-before",
        "move-after",
        "decorate",
        "wrap",
    ]
    place: Place
    code: str = ""
    to: Place | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """Edits that remove a finding. Safe: cannot change what a correct program computes."""

    edits: tuple[Edit, ...]
    safe: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule is broken in source.

    `message` is the cause, in the user's own names, then the evidence: one sentence
    without a full stop. `advice` is what to write: a sentence that begins in lower case.
    """

    rule: str
    place: Place
    message: str
    advice: str
    fix: Fix | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One way a rule was broken in a watched run.

    `message` and `advice` as in `Finding`; `where` is `path:line` in the user's code,
    or empty; `evidence` are further lines, most telling first.
    """

    rule: str
    message: str
    advice: str
    where: str = ""
    evidence: tuple[str, ...] = ()


def is_code(text: str, offset: int) -> bool:
    """Whether a place is neither in a comment's line nor in a session that a docstring shows."""
    return not _NO_CODE.match(text, text.rfind("\n", 0, offset) + 1)


class IncompleteRuleError(TypeError):
    """A rule class lacks something that a rule must have."""


class Rule:
    """One way a training loop goes wrong; subclassed once in each file of `rules/<family>/`.

    The class docstring is the rule's page. Its first line says what goes wrong, for
    `--list-rules`. Then come the sections `Symptom:`, `Why:`, `What torch does:` (each a
    paragraph that begins with that word), and, where it applies, `Limits:`.

    The file's name is the rule's name, its folder is the rule's family. A rule defines
    `lint`, or `watch`, or both.
    """

    #: Released version that first had the rule.
    since: ClassVar[str]
    #: False: only with `--select`, because it cannot be precise; the page says why.
    default: ClassVar[bool] = True
    #: True: a watched run shows enough to be precise even where `default` is False.
    precise_in_runs: ClassVar[bool] = False
    #: Words of which each must stand in a file for `lint` to have anything to say about
    #: it; `"a|b"` means either. A plain byte search, made before any parsing; the first are
    #: the words that the rule turns on (see `seek`).
    triggers: ClassVar[tuple[str, ...]] = ()
    #: First the bad and the good example for the page, then the edge cases.
    examples: ClassVar[tuple[Bad | Good, ...]]
    #: Where the rule was met: addresses of threads, documentation, papers.
    sources: ClassVar[tuple[str, ...]]

    name: ClassVar[str]
    family: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Derive the name from the file, and refuse a rule that is not complete."""
        *_, family, stem = cls.__module__.split(".")
        cls.name = stem.replace("_", "-")
        cls.family = family
        expected = "".join(word.title() for word in stem.split("_"))
        problems = list(_problems(cls, expected))
        if problems:
            raise IncompleteRuleError(f"{cls.__module__}: {'; '.join(problems)}")

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Yield a finding for each place of `file` that breaks the rule."""
        return iter(())

    def watch(self, run: Run) -> Iterator[Observation]:
        """Yield an observation for each way in which `run` broke the rule."""
        return iter(())

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield where in a file the rule may have something to say, as offsets into its text.

        A file without such a place is not parsed for the rule, and a function that nobody
        calls is read only if it, or what it calls, holds one. As it stands: wherever one of
        the first triggers stands in code. A rule that turns on common words looks closer.
        """
        for word in cls.triggers[0].split("|"):
            at = text.find(word)
            while at >= 0:
                if is_code(text, at):
                    yield at
                line_end = text.find("\n", at)
                at = text.find(word, line_end) if line_end >= 0 else -1

    @classmethod
    def sees_source(cls) -> bool:
        """Whether the linter can see this rule broken."""
        return cls.lint is not Rule.lint

    @classmethod
    def sees_runs(cls) -> bool:
        """Whether a watched run can show this rule broken."""
        return cls.watch is not Rule.watch

    @classmethod
    def default_in_runs(cls) -> bool:
        """Whether a watched run is asked for this rule unless somebody chooses otherwise."""
        return cls.sees_runs() and (cls.default or cls.precise_in_runs)

    @classmethod
    def summary(cls) -> str:
        """The first line of the page: what goes wrong."""
        return cleandoc(cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def finding(cls, place: Place, message: str, advice: str, fix: Fix | None = None) -> Finding:
        """A finding of this rule."""
        return Finding(cls.name, place, message, advice, fix)

    @classmethod
    def observation(
        cls, message: str, advice: str, where: str = "", evidence: tuple[str, ...] = ()
    ) -> Observation:
        """An observation of this rule."""
        return Observation(cls.name, message, advice, where, evidence)


def _problems(cls: type[Rule], expected: str) -> Iterator[str]:
    if cls.__name__ != expected:
        yield f"name the class {expected}, after its file"
    for section in ("Symptom:", "Why:", "What torch does:"):
        if section not in (cls.__doc__ or ""):
            yield f"the docstring has no `{section}` section"
    for attribute in ("since", "examples", "sources"):
        if not hasattr(cls, attribute):
            yield f"set `{attribute}`"
    examples = getattr(cls, "examples", ())
    if cls.sees_source():
        if not cls.triggers:
            yield "set `triggers`, the words that a file must hold"
        if not any(isinstance(example, Bad) for example in examples):
            yield "give a Bad example"
        if not any(isinstance(example, Good) for example in examples):
            yield "give a Good example"
    if not cls.sees_source() and not cls.sees_runs():
        yield "define `lint` or `watch`"
