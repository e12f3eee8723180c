"""The rule `wrong-optimizer-stepped`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Collection,
    FileFacts,
    Frame,
    Inside,
    Result,
    Step,
    TrainingLoop,
    Value,
    before,
    between,
    comes_along,
    is_known_harmless,
    is_optimizer,
    is_out_of_order,
    may_do_anything,
    options,
    same,
    stepped_optimizer,
    together,
)

#: How many ways a value can have before more of them are dropped.
MOST_WAYS = 8


class WrongOptimizerStepped(Rule):
    """One optimizer of a pair is cleared for its update, and the other one is stepped.

    Symptom: one net of the pair (a discriminator, a critic, ...) stays at its initialisation,
    while the other is updated twice, once with gradients of a loss that was not meant for it.

    Why: the lines of one update are copied for the other net, and one name stays as it was.

    What torch does: nothing. Stepping an optimizer with whatever gradients there are is legal.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "zero_grad")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.step.html",
        "https://github.com/Hsintien-Ng/idinvert_pytorch-reproduced/issues/1",
        "https://github.com/opendp/smartnoise-sdk/issues/280",
    )
    examples = (
        Bad(
            "the discriminator is cleared, the generator is stepped",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    d_loss = bce(net_d(real), 1) + bce(net_d(net_g(z).detach()), 0)
                    d_loss.backward()
                    opt_g.step()  # error
                    opt_g.zero_grad()
                    g_loss = bce(net_d(net_g(z)), 1)
                    g_loss.backward()
                    opt_g.step()
            """,
            fixed="""
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    d_loss = bce(net_d(real), 1) + bce(net_d(net_g(z).detach()), 0)
                    d_loss.backward()
                    opt_d.step()  # error
                    opt_g.zero_grad()
                    g_loss = bce(net_d(net_g(z)), 1)
                    g_loss.backward()
                    opt_g.step()
            """,
        ),
        Good(
            "each optimizer is cleared and stepped",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    d_loss = bce(net_d(real), 1) + bce(net_d(net_g(z).detach()), 0)
                    d_loss.backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    g_loss = bce(net_d(net_g(z)), 1)
                    g_loss.backward()
                    opt_g.step()
            """,
        ),
        Bad(
            "through a gradient scaler, in a method",
            """
            class Agent:
                def __init__(self, actor, critic, scaler):
                    self.actor, self.critic, self.scaler = actor, critic, scaler
                    self.actor_opt = torch.optim.Adam(actor.parameters())
                    self.critic_opt = torch.optim.Adam(critic.parameters())

                def update(self, state, target):
                    self.critic_opt.zero_grad()
                    self.scaler.scale(F.mse_loss(self.critic(state), target)).backward()
                    self.scaler.step(self.critic_opt)
                    self.actor_opt.zero_grad()
                    self.scaler.scale(-self.critic(self.actor(state)).mean()).backward()
                    self.scaler.step(self.critic_opt)  # error
                    self.scaler.update()
            """,
        ),
        Bad(
            "cleared together, and one of them stepped twice",
            """
            def train(net_g, net_d, loader, bce):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real, z in loader:
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    bce(net_d(net_g(z)), 1).backward()
                    opt_g.step()
                    d_loss = bce(net_d(real), 1) + bce(net_d(net_g(z).detach()), 0)
                    d_loss.backward()
                    opt_g.step()  # error
            """,
        ),
        Good(
            "one of them makes two updates, the other one its own elsewhere",
            """
            class Trainer:
                def __init__(self, net_g, net_d):
                    self.net_g, self.net_d = net_g, net_d
                    self.opt_g = torch.optim.Adam(net_g.parameters())
                    self.opt_d = torch.optim.Adam(net_d.parameters())

                def update_g(self, z, w, bce):
                    self.opt_g.zero_grad()
                    self.opt_d.zero_grad()
                    bce(self.net_d(self.net_g(z)), 1).backward()
                    self.opt_g.step()
                    bce(self.net_d(self.net_g(w)), 1).backward()
                    self.opt_g.step()

                def update_d(self, real, z, bce):
                    bce(self.net_d(real), self.net_d(self.net_g(z).detach())).backward()
                    self.opt_d.step()
            """,
        ),
        Good(
            "the caller steps the other one",
            """
            def train(net_g, net_d, loader, bce, opt_g, opt_d):
                for z, w in loader:
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    bce(net_d(net_g(z)), 1).backward()
                    opt_g.step()
                    bce(net_d(net_g(w)), 1).backward()
                    opt_g.step()
            """,
        ),
        Bad(
            "unscaled, and saved by a helper out of sight",
            """
            import torch
            from checkpoints import save_checkpoint

            def train(net_g, net_d, loader, opt_g, opt_d, scaler, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    scaler.scale(bce(net_d(real), net_d(net_g(z).detach()))).backward()
                    scaler.unscale_(opt_d)
                    scaler.step(opt_d)
                    opt_g.zero_grad()
                    scaler.scale(bce(net_d(net_g(z)), 1)).backward()
                    scaler.unscale_(opt_g)
                    scaler.step(opt_d)  # error
                    scaler.update()
                save_checkpoint("last.pt", net_g, net_d, opt_g, opt_d)
            """,
        ),
        Bad(
            "of a class that is chosen",
            """
            class Trainer:
                def __init__(self, net_g, net_d, kind):
                    self.net_g, self.net_d = net_g, net_d
                    self.opt_g = self.make(kind, net_g)
                    self.opt_d = self.make(kind, net_d)

                def make(self, kind, net):
                    if kind == "sgd":
                        return torch.optim.SGD(net.parameters(), lr=0.1)
                    return torch.optim.Adam(net.parameters())

                def update(self, real, z, bce):
                    self.opt_g.zero_grad()
                    bce(self.net_d(self.net_g(z)), 1).backward()
                    self.opt_g.step()
                    self.opt_d.zero_grad()
                    bce(self.net_d(real), self.net_d(self.net_g(z).detach())).backward()
                    self.opt_g.step()  # error
            """,
        ),
        Good(
            "gradients that another loss left are thrown away",
            """
            def train(actor, critic, loader, actor_opt, critic_opt):
                for state, target in loader:
                    actor_opt.zero_grad()
                    critic_opt.zero_grad()
                    (-critic(actor(state)).mean()).backward()
                    actor_opt.step()
                    critic_opt.zero_grad()
                    F.mse_loss(critic(state), target).backward()
                    critic_opt.step()
            """,
        ),
        Good(
            "cleared together, stepped in turn",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    d_loss = bce(net_d(real), net_d(net_g(z).detach()))
                    g_loss = bce(net_d(net_g(z)), 1)
                    opt_g.zero_grad()
                    d_loss.backward(retain_graph=True)
                    opt_d.step()
                    g_loss.backward()
                    opt_g.step()
            """,
        ),
        Good(
            "one optimizer makes two updates, the other is stepped by a helper",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce, finish):
                for real, z in loader:
                    opt_d.zero_grad()
                    bce(net_d(real), net_d(net_g(z))).backward()
                    opt_g.step()
                    finish(opt_d)
                    opt_g.zero_grad()
                    bce(net_d(net_g(z)), 1).backward()
                    opt_g.step()
            """,
        ),
        Good(
            "the other optimizer is stepped every fifth time",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce):
                for i, (real, z) in enumerate(loader):
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    bce(net_d(real), net_d(net_g(z))).backward()
                    opt_g.step()
                    if i % 5 == 0:
                        opt_d.step()
                    opt_g.zero_grad()
                    bce(net_d(net_g(z)), 1).backward()
                    opt_g.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare what each update clears with what it steps."""
        for loop in file.loops:
            found = False
            for step in loop.steps:
                clearing = _clearing_of(loop, step)
                if clearing is not None and _is_mixed_up(loop, step, clearing):
                    found = True
                    yield self._report(step, clearing)
            if not found:
                yield from self._left_out(file, loop)

    def _left_out(self, file: FileFacts, loop: TrainingLoop) -> Iterator[Finding]:
        """Where one optimizer makes two updates, and the other, cleared as well, makes none."""
        again = _second_update(loop)
        if again is None:
            return
        for clearing in loop.clearings:
            if isinstance(clearing, Call) and _is_never_stepped(file, loop, clearing):
                meant, stepped = clearing.receiver_text, again.optimizer_text
                yield self.finding(
                    again.call.place,
                    f"`{again.call.text}` steps `{stepped}` a second time, while `{meant}`, which "
                    "the loop clears too, is never stepped",
                    f"step `{meant}` after the backward that is meant for it",
                )
                return

    def _report(self, step: Step, clearing: Call) -> Finding:
        meant, stepped = clearing.receiver_text, step.optimizer_text
        written = (
            f"{meant}.step()"
            if step.call.receiver is step.optimizer
            else f"{step.call.receiver_text}.step({meant})"
        )
        is_plain = not step.call.keywords and len(step.call.args) <= len(options(step.optimizer))
        return self.finding(
            step.call.place,
            f"`{step.call.text}` steps `{stepped}`, but this update cleared `{meant}`, which "
            "nothing ever steps",
            f"write `{written}`",
            Fix((Edit("replace", step.call.place, written),), safe=False)
            if is_plain and _functions(step.call) == _functions(clearing)
            else None,
        )


def _clearing_of(loop: TrainingLoop, step: Step) -> Call | None:
    """The one `zero_grad()` of an update: between the step before and this update's backward."""
    verbs = [backward.call for backward in loop.backwards]
    steps = [other.call for other in loop.steps]
    clearings = [
        event
        for event in loop.clearings
        if isinstance(event, Call) and not is_out_of_order(loop, event)
    ]
    previous = before(steps, step.call)
    first = previous[-1].index if previous else -1
    own = [event for event in before(clearings, step.call) if event.index > first]
    if len(own) != 1 or own[0].method != "zero_grad" or own[0].receiver is None:
        return None
    updates = [call for call in between(verbs, own[0], step.call) if together(call, step.call)]
    return own[0] if updates else None


def _is_mixed_up(loop: TrainingLoop, step: Step, clearing: Call) -> bool:
    """Whether the update clears an optimizer that is never stepped, and steps a busy one."""
    meant = clearing.receiver
    if meant is None or not is_optimizer(meant) or not is_optimizer(step.optimizer):
        return False
    if same(meant, step.optimizer) or not (_is_told(meant) and _is_told(step.optimizer)):
        return False
    others = [
        other
        for other in loop.steps
        if other is not step
        and same(other.optimizer, step.optimizer)
        and together(other.call, step.call)
        and _is_paired(loop, other)
    ]
    return bool(others) and not any(_may_step(call, meant) for call in loop.trace.calls)


def _is_paired(loop: TrainingLoop, step: Step) -> bool:
    """Whether the step comes with a `zero_grad()` of its own optimizer: that is its real update."""
    clearing = _clearing_of(loop, step)
    return (
        clearing is not None
        and clearing.receiver is not None
        and same(clearing.receiver, step.optimizer)
    )


def _is_told(optimizer: Value) -> bool:
    """Whether it is known which optimizer that is, though perhaps not of which class."""
    ways = options(optimizer)
    return len(ways) < MOST_WAYS and not any(isinstance(way, Collection) for way in ways)


def _second_update(loop: TrainingLoop) -> Step | None:
    """The second of two updates by the only optimizer that steps, in one and the same turn."""
    steps = [step for step in loop.steps if not is_out_of_order(loop, step.call)]
    backwards = [backward.call for backward in loop.backwards]
    if len(loop.optimizers) != 1 or len(steps) != len(loop.steps):
        return None
    for first, second in itertools.pairwise(steps):
        if comes_along(first.call, second.call) and comes_along(second.call, first.call):
            if between(backwards, first.call, second.call):
                return second
    return None


def _is_never_stepped(file: FileFacts, loop: TrainingLoop, clearing: Call) -> bool:
    """Whether an optimizer that is made in sight is cleared in the loop, and stepped nowhere."""
    meant = clearing.receiver
    if clearing.method != "zero_grad" or meant is None or same(meant, loop.optimizers[0]):
        return False
    if not all(isinstance(way, Result) and is_optimizer(way) for way in options(meant)):
        return False
    calls = [call for trace in file.traces for call in trace.calls]
    makers = [way.call for way in options(meant) if isinstance(way, Result)]
    is_made_here = all(any(made is call for call in loop.trace.calls) for made in makers)
    return is_made_here and not any(
        _may_step(call, meant) or _steps_unknown(call) for call in calls
    )


def _steps_unknown(call: Call) -> bool:
    """Whether the call steps something that is not known to be another optimizer."""
    stepped = stepped_optimizer(call)
    return stepped is not None and any(
        not isinstance(way, Result) or not is_optimizer(way) for way in options(stepped)
    )


#: What an optimizer is given to without being stepped.
_QUIET = re.compile(r"zero_grad|(?:load_)?state_dict|unscale_|(?:un)?toggle_optimizer|save\w*")


def _may_step(call: Call, optimizer: Value) -> bool:
    stepped = stepped_optimizer(call)
    if stepped is not None:
        return same(stepped, optimizer)
    if _QUIET.fullmatch(call.method) or is_known_harmless(call):
        return False
    return may_do_anything(call, optimizer)


def _functions(call: Call) -> list[Frame]:
    return [frame for frame in call.context if isinstance(frame, Inside)]
