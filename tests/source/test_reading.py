"""What the reader makes of a program: order, loops, guards, and where values come from."""

from __future__ import annotations

from textwrap import dedent

import pytest

from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Collection,
    FileFacts,
    Loop,
    With,
    attached,
    exclusive,
    gradients,
    is_optimizer,
    maker,
    options,
    origins,
    same,
)
from pytest_trainloop.source.read import read_source
from pytest_trainloop.source.tree import SourceTree


def facts(code: str, **beside: str) -> FileFacts:
    """The facts of `main.py`, beside which the other modules stand."""
    files = {f"{name}.py": dedent(text) for name, text in beside.items()}
    files["main.py"] = dedent(code)
    tree = SourceTree(files, read=lambda path: files[path].encode())
    return read_source(files["main.py"], "main.py", tree)


def calls(found: FileFacts) -> list[str]:
    """The names of all calls, trace by trace, in order."""
    return [call.name for trace in found.traces for call in trace.calls]


def call(found: FileFacts, method: str) -> Call:
    """The one call of a method."""
    (only,) = [call for trace in found.traces for call in trace.calls if call.method == method]
    return only


def test_arguments_happen_before_the_call_and_its_body_after_it() -> None:
    """Events stand in the order in which the program runs."""
    found = facts(
        """
        def step(loss):
            loss.backward()

        def train(model, x):
            step(model(x))
        """
    )
    assert calls(found) == ["model", "step", "loss.backward"]


def test_a_function_that_is_called_is_not_read_alone() -> None:
    """A function is read in the context of its callers; without callers, alone."""
    found = facts(
        """
        def inner(loss):
            loss.backward()

        def outer(loss):
            inner(loss)
        """
    )
    assert len(found.traces) == 2
    assert found.traces[1].entry is not None
    assert found.traces[1].entry.name == "outer"


def test_methods_of_a_class_see_what_its_constructor_made() -> None:
    """`self.optimizer` is known from `__init__` though nobody in sight makes the object."""
    found = facts(
        """
        import torch

        class Trainer:
            def __init__(self, model):
                self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

            def update(self, loss):
                loss.backward()
                self.optimizer.step()
        """
    )
    step = next(call for trace in found.traces for call in trace.calls if call.method == "step")
    assert step.receiver is not None
    assert maker(step.receiver) == "torch.optim.SGD"


def test_inherited_methods_and_super_are_followed() -> None:
    """Base classes of the same file are looked through."""
    found = facts(
        """
        class Base:
            def update(self, loss):
                loss.backward()

        class Child(Base):
            def update(self, loss):
                super().update(loss)

        Child().update(loss)
        """
    )
    assert "loss.backward" in calls(found)


def test_imports_are_followed_into_linted_files() -> None:
    """Relative and absolute imports, names and modules."""
    found = facts(
        """
        from engine import train
        import engine as e

        train(model)
        e.evaluate(model)
        """,
        engine="""
        def train(model):
            model(1).backward()

        def evaluate(model):
            model.eval()
        """,
    )
    assert [name for name in calls(found) if "." in name] == [
        "model().backward",
        "e.evaluate",
        "model.eval",
    ]


def test_modules_that_import_each_other_are_read() -> None:
    """A circle of imports ends, and the names are found."""
    found = facts(
        """
        from a import train
        train(model)
        """,
        a="""
        from b import step

        def train(model):
            step(model)
        """,
        b="""
        import a

        def step(model):
            model(1).backward()
        """,
    )
    assert "model().backward" in calls(found)


@pytest.mark.parametrize(
    "definition",
    ["def f(m):\n    m.backward()", "f = lambda m: m.backward()"],
    ids=["def", "lambda"],
)
def test_closures_are_followed(definition: str) -> None:
    """A function under another name is the same function."""
    found = facts(f"{definition}\ng = f\ng(loss)\n")
    assert "m.backward" in calls(found)


def test_a_name_bound_anew_is_another_value() -> None:
    """`loss = loss.item()` ends the tensor's life under that name."""
    found = facts(
        """
        def train(model, x):
            loss = model(x)
            loss.backward()
            loss = loss.item()
            print(loss)
        """
    )
    backward, shown = call(found, "backward"), call(found, "print")
    assert backward.receiver is not None
    assert not same(backward.receiver, shown.args[0])
    assert attached(backward.receiver) is True
    assert attached(shown.args[0]) is False


def test_both_arms_of_a_branch_exclude_each_other() -> None:
    """What follows an arm that leaves stands in the other arm."""
    found = facts(
        """
        def train(model, loader):
            for x in loader:
                if bad(x):
                    model.skip()
                    continue
                model.learn()
        """
    )
    skip, learn = call(found, "skip"), call(found, "learn")
    assert exclusive(skip.context, learn.context)
    assert [frame.arm for frame in learn.context if isinstance(frame, Branch)] == ["orelse"]


def test_values_meet_after_a_branch() -> None:
    """A name bound in both arms is either of the two."""
    found = facts(
        """
        import torch

        def build(model, name):
            if name == "sgd":
                optimizer = torch.optim.SGD(model.parameters())
            else:
                optimizer = torch.optim.Adam(model.parameters())
            optimizer.step()
        """
    )
    receiver = call(found, "step").receiver
    assert receiver is not None
    assert len(options(receiver)) == 2
    assert is_optimizer(receiver)


def test_a_context_manager_of_the_file_encloses_the_body() -> None:
    """The body of the `with` runs where the generator yields."""
    found = facts(
        """
        import contextlib
        import torch

        @contextlib.contextmanager
        def evaluating(model):
            model.eval()
            with torch.no_grad():
                yield
            model.train()

        def run(model, x):
            with evaluating(model):
                model.predict(x)
        """
    )
    assert calls(found)[-4:] == ["model.eval", "torch.no_grad", "model.predict", "model.train"]
    assert gradients(call(found, "predict").context) is False


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("with torch.no_grad():", False),
        ("with torch.inference_mode():", False),
        ("with torch.inference_mode(False):", None),
        ("with torch.enable_grad():", True),
        ("with torch.set_grad_enabled(training):", None),
        ("with torch.autocast('cuda'):", True),
        ("with no_grad_if(training):", None),
        ("with open('log'):", True),
    ],
)
def test_gradients_are_on_off_or_not_known(header: str, expected: bool | None) -> None:
    """Only what is certain counts as switched off."""
    found = facts(f"import torch\ndef run(model, training):\n    {header}\n        model.go()\n")
    assert gradients(call(found, "go").context) is expected


def test_a_decorator_switches_gradients_off() -> None:
    """`@torch.no_grad()` counts wherever the function is followed."""
    found = facts(
        """
        import torch

        @torch.no_grad()
        def evaluate(model):
            model.go()

        evaluate(net)
        """
    )
    assert gradients(call(found, "go").context) is False


def test_the_smallest_loop_that_backpropagates_and_steps_is_the_training_loop() -> None:
    """Micro-batch loops are inside it; epoch loops around it."""
    found = facts(
        """
        def train(model, loader, optimizer, k):
            for epoch in range(10):
                for batch in loader:
                    for micro in batch:
                        model(micro).backward()
                    optimizer.step()
        """
    )
    (loop,) = found.loops
    assert loop.loop is not None
    assert loop.loop.header == "for batch in loader:"
    assert [inner.header for inner in loop.inner_loops(loop.backwards[0].call)] == [
        "for micro in batch:"
    ]


def test_a_step_function_is_part_of_its_callers_loop() -> None:
    """Backward and step in a helper belong to the loop that calls it."""
    found = facts(
        """
        def update(model, x, optimizer):
            model(x).backward()
            optimizer.step()

        def train(model, loader, optimizer):
            for x in loader:
                update(model, x, optimizer)
        """
    )
    (loop,) = found.loops
    assert loop.loop is not None
    assert loop.loop.header == "for x in loader:"


def test_a_closure_given_to_step_runs_before_the_update() -> None:
    """LBFGS calls its closure inside `step`."""
    found = facts(
        """
        def fit(model, optimizer, x):
            for _ in range(3):
                def closure():
                    optimizer.zero_grad()
                    loss = model(x)
                    loss.backward()
                    return loss
                optimizer.step(closure)
        """
    )
    assert calls(found)[-4:] == ["optimizer.zero_grad", "model", "loss.backward", "optimizer.step"]


def test_an_engine_is_a_loop_around_its_update_function() -> None:
    """Ignite calls the update function for every batch."""
    found = facts(
        """
        from ignite.engine import Engine

        def update(engine, batch):
            model(batch).backward()
            optimizer.step()

        Engine(update).run(loader)
        """
    )
    (loop,) = found.loops
    assert loop.loop is not None
    assert loop.loop.kind == "engine"


def test_prepared_objects_stay_the_same_objects() -> None:
    """Accelerate gives back what it was given, one for one."""
    found = facts(
        """
        import torch
        from accelerate import Accelerator

        accelerator = Accelerator()
        optimizer = torch.optim.SGD(model.parameters())
        wrapped, opt = accelerator.prepare(model, optimizer)
        opt.step()
        """
    )
    receiver = call(found, "step").receiver
    assert receiver is not None
    assert maker(receiver) == "torch.optim.SGD"


def test_unpacking_keeps_each_part_with_its_origin() -> None:
    """A tuple returned by a function in sight is taken apart."""
    found = facts(
        """
        def both(model, x):
            output = model(x)
            return output, output.item()

        def train(model, x):
            tensor, number = both(model, x)
            first(tensor)
            second(number)
        """
    )
    assert attached(call(found, "first").args[0]) is True
    assert attached(call(found, "second").args[0]) is False
    made = [getattr(part, "call", None) for part in origins(call(found, "first").args[0])]
    assert call(found, "both") in made


def test_a_generator_of_the_file_is_read_inside_the_loop_over_it() -> None:
    """What it does happens at every turn."""
    found = facts(
        """
        def batches(loader):
            for x in loader:
                x.prepare_step()
                yield x

        def train(model, loader):
            for x in batches(loader):
                model(x).backward()
        """
    )
    prepare = call(found, "prepare_step")
    assert [type(frame) for frame in prepare.context if isinstance(frame, Loop)] == [Loop, Loop]


def test_lists_know_where_they_were_made() -> None:
    """A list made outside a loop outlives its turns."""
    found = facts(
        """
        def train(loader):
            losses = []
            for x in loader:
                losses.append(x)
        """
    )
    append = call(found, "append")
    assert isinstance(append.receiver, Collection)
    assert not any(isinstance(frame, Loop) for frame in append.receiver.context)


def test_recursion_ends() -> None:
    """A function that calls itself is read once."""
    found = facts("def train(x):\n    x.backward()\n    train(x)\ntrain(1)\n")
    assert calls(found) == ["train", "x.backward", "train"]


def test_places_count_characters_from_one() -> None:
    """Letters outside ASCII take one column."""
    found = facts('x = "größe"; loss.backward()\n')
    place = call(found, "backward").place
    assert (place.line, place.column, place.end_column) == (1, 14, 29)


def test_a_form_feed_does_not_end_a_line() -> None:
    """Lines are counted as Python counts them."""
    found = facts("\x0c\nx = 1\nloss.backward()\n")
    assert call(found, "backward").place.line == 3
    assert call(found, "backward").text == "loss.backward()"


def test_with_items_share_one_frame() -> None:
    """`with a, b:` is one construct with two managers."""
    found = facts("import torch\nwith torch.no_grad(), torch.autocast('cuda'):\n    model.go()\n")
    (frame,) = [frame for frame in call(found, "go").context if isinstance(frame, With)]
    assert len(frame.managers) == 2


def test_names_are_read_from_other_modules_when_they_are_asked_for() -> None:
    """Constants, decorated and conditional definitions, star imports and circles all resolve."""
    found = facts(
        """
        from library import *
        from library import Base

        class Loop(Base):
            pass

        def train(model, x):
            loss = compute(model(x), SCALE)
            loss.backward()
            fallback(loss)
            Loop().finish(loss)
        """,
        library="""
        from parts import scaled
        SCALE = HALF = 0.5

        @decorated(
        "def compute(): pass",
        )
        def compute(output, scale):
            return scaled(output.mean(), scale)

        try:
            from nowhere import fallback
        except ImportError:
            def fallback(loss):
                loss.detach()

        class Base:
            def finish(self, loss):
                loss.item()
        """,
        parts="""
        from library import SCALE

        def scaled(loss, by):
            return loss.float() * by * SCALE
        """,
    )
    followed = [name.rpartition(".")[2] for name in calls(found)]
    assert followed == [
        *("model", "compute", "mean", "scaled", "float", "backward"),
        *("fallback", "Loop", "finish", "item"),
    ]
