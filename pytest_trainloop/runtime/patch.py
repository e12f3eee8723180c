"""Replace attributes while a run is watched, and put the originals back."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any


class Patches:
    """A stack of replaced attributes and registered hooks.

    Undone in reverse order. An attribute that somebody else replaced meanwhile is left as
    they made it: our wrapper below theirs then only passes through, because it asks
    `active` first.
    """

    def __init__(self) -> None:
        self.active = False
        self._undo: list[Callable[[], object]] = []

    def replace(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], FunctionType]
    ) -> None:
        """Set `owner.name` to `make(original)`; nothing if `owner` has no such attribute."""
        original = getattr(owner, name, None)
        if original is None:
            return
        own = name in vars(owner)
        wrapper = make(original)
        hide_from_compiler([wrapper.__code__])
        wrapper.__wrapped__ = original  # type: ignore[attr-defined]  # as functools.wraps does
        wrapper.__name__ = name
        wrapper.__qualname__ = getattr(original, "__qualname__", name)
        wrapper.__doc__ = original.__doc__
        setattr(owner, name, wrapper)

        def undo() -> None:
            if vars(owner).get(name) is not wrapper:
                return
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        self._undo.append(undo)

    def on_exit(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the patches are put back."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, the latest change first."""
        self.active = False
        while self._undo:
            self._undo.pop()()


def hide_from_compiler(codes: list[CodeType]) -> None:
    """Let torch.compile run these as they stand instead of tracing into them.

    Only they themselves: what the user compiles below them stays compiled.
    """
    try:
        from torch._C._dynamo import eval_frame

        action = eval_frame._FrameAction
        strategy = eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT)
        while codes:
            code = codes.pop()
            eval_frame.set_code_exec_strategy(code, strategy)
            codes.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))
    except (ImportError, AttributeError):
        # torch 2.6 and older: a compiled step function that calls backward then breaks into
        # more graphs, but computes the same.
        return
