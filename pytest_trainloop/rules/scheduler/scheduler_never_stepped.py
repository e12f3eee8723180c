"""The rule `scheduler-never-stepped`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    ClassFacts,
    Collection,
    Either,
    FileFacts,
    Function,
    FunctionFacts,
    Inside,
    Result,
    Returned,
    Store,
    Trace,
    TrainingLoop,
    Value,
    is_accelerator,
    is_fabric,
    is_lightning_module,
    is_scheduler_call,
    options,
    origins,
    same,
)

_CALLED = re.compile(r"(?:LR|[sS]chedule\w*|WarmRestarts)\(")
#: What stands before that where the result gets a name of its own.
_NAMED = re.compile(r"(?<![\w.])\w+(?:\s*:[^=\n]+)?\s*=[\s(\\]*(?:\w+\s*\.\s*)*\w*$")
#: How far before a call's name that is looked for, in characters.
_REACH = 160


class SchedulerNeverStepped(Rule):
    """A learning-rate scheduler is made, and nothing ever steps it.

    Symptom: the learning rate stays at its first value for the whole run. With a warm-up that
    is a rate close to 0, and nothing is learned; with a decay the loss stays noisy at the end.

    Why: a scheduler changes the learning rate only in its `step()`. In Lightning the trainer
    calls it, but with manual optimization (`automatic_optimization = False`) it leaves that to
    `training_step`, although `configure_optimizers` has returned the scheduler.

    What torch does: nothing. Lightning says nothing either.
    """

    since = "0.1"
    triggers = ("LR|schedule|WarmRestarts", "step")
    sources = (
        "https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html#learning-rate-scheduling",
        "https://github.com/IntelLabs/matsciml/issues/240",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/17738",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/6379",
        "https://github.com/voicepaw/so-vits-svc-fork/issues/291",
    )
    examples = (
        Bad(
            "a scheduler that nothing uses",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)  # error
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "stepped every epoch",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    scheduler.step()
            """,
        ),
        Bad(
            "prepared, and then forgotten",
            """
            from accelerate import Accelerator
            from transformers import get_linear_schedule_with_warmup
            import torch

            def train(model, loader, epochs):
                accelerator = Accelerator()
                optimizer = torch.optim.AdamW(model.parameters())
                scheduler = get_linear_schedule_with_warmup(  # error
                    optimizer, 100, epochs * len(loader)
                )
                model, optimizer, loader, scheduler = accelerator.prepare(
                    model, optimizer, loader, scheduler
                )
                for epoch in range(epochs):
                    for batch in loader:
                        accelerator.backward(model(**batch).loss)
                        optimizer.step()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "manual optimization in Lightning",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Gan(L.LightningModule):
                def __init__(self, net_g, net_d):
                    super().__init__()
                    self.net_g, self.net_d = net_g, net_d
                    self.automatic_optimization = False

                def configure_optimizers(self):
                    opt = torch.optim.Adam(self.net_g.parameters())
                    return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.99)]  # error

                def training_step(self, batch, batch_idx):
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    self.manual_backward(F.mse_loss(self.net_g(batch), batch))
                    optimizer.step()
            """,
        ),
        Bad(
            "its rate is printed and its state saved, but it never steps",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)  # error
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    print(epoch, scheduler.get_last_lr())
            """,
        ),
        Bad(
            "handed to functions in sight, which save it, and do not step it",
            """
            from diffusers.optimization import get_scheduler
            import torch
            from torch.nn import functional as F

            def save(path, model, scheduler):
                state = {"model": model.state_dict(), "scheduler": scheduler.state_dict()}
                torch.save(state, path)

            def train_epoch(model, loader, optimizer, schedulers):
                '''Train with the scheduler.'''
                warmup, scheduler = schedulers
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()

            def main(args, model, loader, checkpoint):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = get_scheduler(args.scheduler, optimizer=optimizer)  # error
                if scheduler is not None and "scheduler" in checkpoint:
                    scheduler.load_state_dict(checkpoint["scheduler"])
                for epoch in range(args.epochs):
                    train_epoch(model, loader, optimizer, [None, scheduler])
                    save("last.pt", model, scheduler)
            """,
        ),
        Good(
            "a function in sight steps it",
            """
            def train_epoch(model, loader, optimizer, schedulers):
                warmup, scheduler = schedulers
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()

            def main(model, loader, epochs):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                for epoch in range(epochs):
                    train_epoch(model, loader, optimizer, [None, scheduler])
            """,
        ),
        Good(
            "a function in sight keeps it, chains it, or leaves it to a hook",
            """
            class State:
                pass

            def keep(state, scheduler):
                state.scheduler = scheduler
                print(scheduler.state_dict())

            def chain(optimizer, scheduler):
                return torch.optim.lr_scheduler.ChainedScheduler([scheduler], optimizer)

            def attach(model, scheduler):
                def hook(*ignored):
                    scheduler.step()

                model.register_forward_hook(hook)

            def main(model, loader, epochs, finish):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                kept = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                part = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                hooked = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                state = State()
                keep(state, kept)
                both = chain(optimizer, part)
                attach(model, hooked)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    both.step()
                    finish(state)
            """,
        ),
        Bad(
            "made by a function in sight",
            """
            def make_scheduler(optimizer, warmup, steps):
                first = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=warmup)
                then = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
                return torch.optim.lr_scheduler.SequentialLR(  # error
                    optimizer, [first, then], milestones=[warmup]
                )

            def main(model, loader, steps):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = make_scheduler(optimizer, 100, steps)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "handed to a helper",
            """
            def train(model, loader, epochs, run_epoch):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                run_epoch(model, optimizer, scheduler)
            """,
        ),
        Good(
            "stepped here, unpacked in a helper",
            """
            def train_epoch(model, loader, optimizers, schedulers):
                opt_a, opt_b = optimizers
                sched_a, sched_b = schedulers
                for x, y in loader:
                    opt_a.zero_grad()
                    opt_b.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    opt_a.step()
                    opt_b.step()
                    print(sched_a.get_last_lr())

            def main(model, loader, opt_a, opt_b):
                sched_a = torch.optim.lr_scheduler.ExponentialLR(opt_a, 0.9)
                sched_b = torch.optim.lr_scheduler.ExponentialLR(opt_b, 0.9)
                for epoch in range(10):
                    train_epoch(model, loader, [opt_a, opt_b], [sched_a, sched_b])
                    sched_a.step()
                    sched_b.step()
            """,
        ),
        Good(
            "one part of a chain",
            """
            def train(model, loader, epochs):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
                decay = torch.optim.lr_scheduler.StepLR(optimizer, 30)
                both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [5])
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    both.step()
            """,
        ),
        Good(
            "stepped by a function inside",
            """
            def train(model, loader, run):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)

                def update(x, y):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    scheduler.step()

                for x, y in loader:
                    update(x, y)
            """,
        ),
        Good(
            "Lightning's trainer steps it",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def configure_optimizers(self):
                    optimizer = torch.optim.Adam(self.parameters())
                    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)]

                def training_step(self, batch, batch_idx):
                    return F.mse_loss(self.net(batch), batch)
            """,
        ),
        Good(
            "manual optimization that steps it after each epoch",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def __init__(self, net):
                    super().__init__()
                    self.net = net
                    self.automatic_optimization = False

                def configure_optimizers(self):
                    optimizer = torch.optim.Adam(self.parameters())
                    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)]

                def training_step(self, batch, batch_idx):
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    self.manual_backward(F.mse_loss(self.net(batch), batch))
                    optimizer.step()

                def on_train_epoch_end(self):
                    self.lr_schedulers().step()
            """,
        ),
        Good(
            "a constant learning rate",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where something with a scheduler's name is called, and its result named or returned."""
        may_be_manual = "configure_optimizers" in text
        for match in _CALLED.finditer(text):
            at = match.start()
            if may_be_manual or _NAMED.search(text[max(at - _REACH, 0) : at]):
                yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for schedulers whose name is never used, and for Lightning's own rule about them."""
        for loop in file.loops:
            for store in loop.trace.stores:
                made = _made_in(store)
                if made is None or not _trains(loop, made):
                    continue
                if not _is_used(loop.trace, store, made):
                    yield self._plain(loop, made, store.target)
        for trace in file.traces:
            yield from self._manual(trace)

    def _plain(self, loop: TrainingLoop, made: Call, name: str) -> Finding:
        around = loop.loop.header if loop.loop is not None else "the loop"
        return self.finding(
            made.place,
            f"`{name}` is made here and never stepped, so the learning rate stays what it is",
            f"call `{name}.step()` in or around `{around}`, after the optimizer's step",
        )

    def _manual(self, trace: Trace) -> Iterator[Finding]:
        entry = trace.entry
        if entry is None or entry.name != "configure_optimizers" or entry.owner is None:
            return
        if not _optimizes_by_hand(entry.owner):
            return
        for event in trace.returns:
            for made in _schedulers_in(event.value):
                yield self.finding(
                    made.place,
                    f"with `automatic_optimization = False` the trainer never steps this "
                    f"`{made.method}`, and nothing in `{entry.owner.name}` does",
                    "call `self.lr_schedulers().step()` in `training_step` or `on_train_epoch_end`",
                )


def _made_in(store: Store) -> Call | None:
    """The call in a `name = StepLR(...)`: one that makes a scheduler of torch or transformers."""
    ways = options(store.value)
    if store.kind != "name" or len(ways) != 1 or not isinstance(ways[0], Result):
        return None
    call = ways[0].call
    maker = store.value.call if isinstance(store.value, Returned) else call
    if store.value_place != maker.place or _prepares(maker):
        return None
    is_known = call.qualified.startswith(
        ("torch.optim.lr_scheduler.", "transformers.", "diffusers.optimization.")
    )
    return call if is_known and is_scheduler_call(call) else None


def _trains(loop: TrainingLoop, made: Call) -> bool:
    """Whether the loop, after the scheduler was made, steps the optimizer that it is for."""
    optimizer = made.argument(0, "optimizer")
    return (
        optimizer is not None
        and loop.loop is not None
        and loop.loop not in made.context
        and any(
            step.call.index > made.index and same(step.optimizer, optimizer) for step in loop.steps
        )
    )


#: Reading a scheduler, or putting a state into it, does not step it.
_READING = (
    r"\.(?:get_last_lr|get_lr|print_lr|state_dict|load_state_dict|last_epoch|base_lrs|T_max)\b"
)
#: What is given a scheduler only to look at it, or to write it down.
_LOOKING = frozenset({"torch.save", "builtins.print", "builtins.type", "builtins.isinstance"})


def _is_used(trace: Trace, store: Store, made: Call) -> bool:
    """Whether the scheduler may be stepped: by its name, or where it is handed over in sight."""
    scheduler = next(option for option in options(store.value) if isinstance(option, Result))
    seen = [call for call in trace.calls if _gets(call, scheduler)]
    if _is_mentioned(store, _told(store, seen, made) | _prepared(trace)):
        return True
    return trace.cut or any(
        (isinstance(event, Store) and event.kind != "name" and _has(event.value, scheduler))
        or (isinstance(event, Call) and _may_step(event, scheduler))
        for event in trace.events
    )


def _gets(call: Call, scheduler: Result) -> bool:
    return any(_has(given, scheduler) for given in call.inputs)


def _has(given: Value, scheduler: Result) -> bool:
    """Whether a value is the scheduler, or a list or a dict of things with it among them."""
    return any(
        option is scheduler
        or (isinstance(option, Collection) and any(_has(item, scheduler) for item in option.items))
        for option in options(given)
    )


def _may_step(call: Call, scheduler: Result) -> bool:
    """Whether a call that gets the scheduler may do more than to read or to prepare it."""
    given = (*call.args, *call.keywords.values())
    if any(_has(value, scheduler) for value in given):
        return not (_is_read(call) or _prepares(call) or call.qualified in _LOOKING)
    is_its_own = call.receiver is not None and _has(call.receiver, scheduler)
    return is_its_own and not re.match(_READING, f".{call.method}")


def _is_read(call: Call) -> bool:
    """Whether all that the call does is on record: its body was read, and keeps no function."""
    callees = options(call.callee)
    return call.followed and all(
        isinstance(callee, Function)
        and not callee.definition.is_generator
        and len(_DEFINITIONS.findall(_lines(callee.definition))) == 1
        for callee in callees
    )


_DEFINITIONS = re.compile(r"\bdef \w|\blambda\b[^:\n]*:[^\n]*\bstep\b")


def _lines(function: FunctionFacts) -> str:
    return "\n".join(function.file.lines[function.first_line - 1 : function.last_line])


def _is_mentioned(store: Store, told: set[int]) -> bool:
    """Whether the text around uses the scheduler's name for more than reading or preparing it."""
    inside = [frame for frame in store.context if isinstance(frame, Inside)]
    first, last = (inside[-1].place.line - 1, inside[-1].place.end_line) if inside else (0, None)
    rows = [
        "" if number in told else row
        for number, row in enumerate(store.file.lines[first:last], first + 1)
    ]
    text = _without_strings("\n".join(rows))
    name = re.escape(store.target)
    return bool(re.search(rf"(?<![\w.]){name}\b(?!\s*=[^=]|{_READING}|{_ASKING})", text))


#: `if scheduler is not None:`
_ASKING = r"\s+is\s+(?:not\s+)?None\b"
_STRING = re.compile(
    r"(?P<prefix>[a-zA-Z]*)(?P<quote>\"{3}|'{3})[\s\S]*?(?P=quote)|#[^\n]*"
    r"|(?P<prefix_>[a-zA-Z]*)(?P<quote_>[\"'])(?:\\.|(?!(?P=quote_))[^\n\\])*(?P=quote_)"
)


def _without_strings(text: str) -> str:
    """The text without comments and strings; formatted strings stay, for the names in them."""

    def kept(match: re.Match[str]) -> str:
        prefix = match["prefix"] or match["prefix_"] or ""
        return match[0] if "f" in prefix.lower() else "''"

    return _STRING.sub(kept, text)


def _told(store: Store, calls: list[Call], made: Call) -> set[int]:
    """The rows of what is known to be done with the scheduler, and to step it not by its name."""
    by_name = re.compile(rf"\b{re.escape(store.target)}\.(?!{_READING[2:]})")
    return {
        row
        for call in calls
        if call.file is store.file and call is not made and not by_name.search(call.text)
        if _is_read(call) or _prepares(call) or call.qualified in _LOOKING
        for row in range(call.place.line, call.place.end_line + 1)
    }


def _prepared(trace: Trace) -> set[int]:
    """The rows of the statements that hand things to an accelerator, and take them back."""
    return {
        row
        for store in trace.stores
        if store.file is trace.file
        for option in (store.value.options if isinstance(store.value, Either) else (store.value,))
        if isinstance(option, Returned) and _prepares(option.call)
        for row in range(store.place.line, store.place.end_line + 1)
    }


def _prepares(call: Call) -> bool:
    """Whether an accelerator wraps what it is given: its scheduler waits to be stepped, too."""
    receiver = call.receiver
    return call.method in ("prepare", "setup") and (
        receiver is not None and (is_accelerator(receiver) or is_fabric(receiver))
    )


#: How a module with manual optimization steps its schedulers.
_STEPPING = re.compile(
    r"lr_schedulers\b|lr_scheduler_(?:step|config)|sched\w*(?:\[[^\]]*\])?\.step\(|\bstep_sched"
)


def _optimizes_by_hand(definition: ClassFacts) -> bool:
    """Whether a Lightning module in full sight steps its optimizers, and no scheduler, itself."""
    bases = list(definition.ancestors())
    if not is_lightning_module(definition) or not all(_is_in_sight(base) for base in bases):
        return False
    classes = [definition, *(base for base in bases if isinstance(base, ClassFacts))]
    text = "\n".join(_text(each) for each in classes)
    by_hand = "automatic_optimization = False" in text and "manual_backward" in text
    return by_hand and not _STEPPING.search(text)


def _is_in_sight(base: ClassFacts | str) -> bool:
    return isinstance(base, ClassFacts) or base.rpartition(".")[2] in ("LightningModule", "ABC")


def _text(definition: ClassFacts) -> str:
    place = definition.place
    return "\n".join(definition.file.lines[place.line - 1 : place.end_line])


def _schedulers_in(value: Value) -> Iterator[Call]:
    for part in origins(value, 100):
        if isinstance(part, Result) and is_scheduler_call(part.call):
            if part.call.qualified.startswith("torch.optim.lr_scheduler."):
                yield part.call
