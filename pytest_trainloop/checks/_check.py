"""What a check is: a promise with a page, typed options, examples and a judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from textwrap import dedent
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

from pytest_trainloop.checks._options import read_options, signature_of

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.checks._verdict import Verdict

_Options = ParamSpec("_Options")
_Test = TypeVar("_Test", bound=Callable[..., object] | type)


@dataclass(frozen=True, slots=True)
class Example:
    """A whole test module, readable on the check's page and run as its test."""

    title: str
    code: str

    @property
    def program(self) -> str:
        """The module's text."""
        return dedent(self.code).strip("\n") + "\n"


@dataclass(frozen=True, slots=True)
class Passes(Example):
    """A module whose tests pass."""


@dataclass(frozen=True, slots=True)
class Fails(Example):
    """A module whose one test fails, with `cause` in the first line of its failure."""

    cause: str


@dataclass(frozen=True, slots=True)
class Unjudged(Example):
    """A module whose one test cannot be judged, with `cause` in the first line."""

    cause: str


class IncompleteCheckError(TypeError):
    """A check class lacks something that a check must have."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A promise that a training loop keeps; subclassed once in each file of `checks/`.

    A subclass is a frozen, keyword-only dataclass: its fields are the marker's options, their
    annotations are checked, `__post_init__` raises `OptionError` for a value out of range.
    Its docstring is the check's page, the first line of which says what the check promises.

    Options:
        timeout: seconds after which the body is given up, all its runs together. A body that
            hangs fails with the line where it was.
        isolate: `"process"` runs the test, with its fixtures, in a process that begins anew: for
            loops that change global state, or may crash.
    """

    timeout: float | None = None
    isolate: Literal["process"] | None = None

    #: Released version that first had the check.
    since: ClassVar[str]
    #: The first that passes and the first that fails are for the page, then come edge cases.
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]]
    #: Fixtures that a test with the marker has to use, each with the reason.
    needs: ClassVar[Mapping[str, str]] = {}
    #: Whether it runs the body several times, and sets its fixtures up anew for each.
    runs_afresh: ClassVar[bool] = False

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Derive the name from the file, and refuse a check that is not complete."""
        cls.name = cls.__module__.rpartition(".")[2]
        expected = "".join(word.title() for word in cls.name.split("_"))
        examples = getattr(cls, "examples", ())
        problems = [
            problem
            for wrong, problem in (
                (cls.__name__ != expected, f"name the class {expected}, after its file"),
                ("since" not in vars(cls), "set `since`"),
                (not cls.__doc__, "write the page as its docstring"),
                (not any(isinstance(one, Passes) for one in examples), "give a Passes example"),
                (not any(isinstance(one, Fails) for one in examples), "give a Fails example"),
                (cls.judge is Check.judge, "define `judge`"),
            )
            if wrong
        ]
        if problems:
            raise IncompleteCheckError(f"{cls.__module__}: {'; '.join(problems)}")

    def judge(self, body: Body) -> Verdict:
        """Run the body of the test as often as needed, and judge what it did.

        Raises:
            PromiseBrokenError: the loop does not keep the promise.
            CannotJudgeError: it cannot be told.
        """
        raise NotImplementedError

    @classmethod
    def summary(cls) -> str:
        """The first line of the page: what the check promises."""
        return cleandoc(cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def signature(cls) -> str:
        """The marker as it is written with its defaults: `overfits(*, steps=100)`."""
        return signature_of(cls, cls.name)

    @classmethod
    def from_options(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Check:
        """The check with a marker's arguments.

        Raises:
            OptionError: an argument does not fit; names the marker.
        """
        return read_options(cls, cls.name, args, kwargs)


class Marker(Generic[_Options]):
    """The decorator of a check: `@overfits`, or `@overfits(steps=50)` with its options.

    The same as `@pytest.mark.overfits`, with the options checked where they are written.
    """

    def __init__(self, check: Callable[_Options, Check]) -> None:
        self._check = cast("type[Check]", check)
        self.__doc__ = self._check.__doc__
        self.__name__ = self._check.name

    # Two overloads overlap only for options that are given by position, which no check takes.
    @overload
    def __call__(self, test: _Test, /) -> _Test: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, *args: _Options.args, **kwargs: _Options.kwargs
    ) -> Callable[[_Test], _Test]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Mark a test, or return the decorator that does.

        Raises:
            OptionError: an option does not fit.
        """
        import pytest

        mark: pytest.MarkDecorator = getattr(pytest.mark, self._check.name)
        if len(args) == 1 and not kwargs and (callable(args[0]) or isinstance(args[0], type)):
            return mark(args[0])
        self._check.from_options(args, kwargs)
        return mark.with_args(**kwargs)
