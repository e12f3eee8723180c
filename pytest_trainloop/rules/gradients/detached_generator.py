"""The rule `detached-generator`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Backward,
    Call,
    FileFacts,
    Result,
    TrainingLoop,
    Value,
    cut_source,
    gradients,
    graph_of,
    is_forward,
    is_output_of,
    layers,
    made_by,
    maker,
    same,
    trains,
)

_LOSS = re.compile(r"loss|criterion|cross_entropy", re.IGNORECASE)


class DetachedGenerator(Rule):
    """The generator's adversarial loss is cut off from the generator.

    Symptom: the adversarial term has a value that moves, because the discriminator learns,
    but the generator never gets better at fooling it. Without another term, the generator
    does not learn at all.

    Why: the discriminator's update needs `fake.detach()`, so that it leaves the generator
    alone. The generator's update needs the opposite: the gradient must run through the
    discriminator back into the fake.

    What torch does: nothing. The loss still has a graph, that of the discriminator.

    Limits: reported only where it is in sight which optimizer was made from which network.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "detach|.data", "parameters()")
    sources = (
        "https://github.com/nikhilsinghmus/image2reverb/issues/37",
        "https://github.com/tamarott/SinGAN/pull/117",
        "https://github.com/wangle53/CSA-CDGAN/issues/5",
    )
    examples = (
        Bad(
            "the generator's fake is detached in its own update",
            """
            def train(net_g, net_d, loader, bce, ones, zeros):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real in loader:
                    fake = net_g(torch.randn(len(real), 100))
                    opt_d.zero_grad()
                    (bce(net_d(real), ones) + bce(net_d(fake.detach()), zeros)).backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    bce(net_d(fake.detach()), ones).backward()  # error
                    opt_g.step()
            """,
            fixed="""
            def train(net_g, net_d, loader, bce, ones, zeros):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real in loader:
                    fake = net_g(torch.randn(len(real), 100))
                    opt_d.zero_grad()
                    (bce(net_d(real), ones) + bce(net_d(fake.detach()), zeros)).backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    bce(net_d(fake), ones).backward()  # error
                    opt_g.step()
            """,
        ),
        Good(
            "only the discriminator's update detaches",
            """
            def train(net_g, net_d, loader, bce, ones, zeros):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for real in loader:
                    fake = net_g(torch.randn(len(real), 100))
                    opt_d.zero_grad()
                    (bce(net_d(real), ones) + bce(net_d(fake.detach()), zeros)).backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    bce(net_d(fake), ones).backward()
                    opt_g.step()
            """,
        ),
        Bad(
            "beside a reconstruction term, which still trains the generator",
            """
            def train(net_g, net_d, loader, bce, ones):
                opt_g = torch.optim.Adam(net_g.parameters())
                for image, target in loader:
                    fake = net_g(image)
                    score = net_d(fake.detach())  # error
                    loss = F.l1_loss(fake, target) + 0.01 * bce(score, ones)
                    opt_g.zero_grad()
                    loss.backward()
                    opt_g.step()
            """,
        ),
        Bad(
            "the discriminator's answer is detached",
            """
            class Trainer:
                def __init__(self, net_g, net_d):
                    self.net_g, self.net_d = net_g, net_d
                    self.optimizer_g = torch.optim.Adam(net_g.parameters())

                def update_generator(self, z):
                    answer = self.net_d(self.net_g(z))
                    loss = F.binary_cross_entropy(answer.detach(), torch.ones(len(z)))  # error
                    self.optimizer_g.zero_grad()
                    loss.requires_grad_()
                    loss.backward()
                    self.optimizer_g.step()

                def train(self, batches):
                    for z in batches:
                        self.update_generator(z)
            """,
        ),
        Bad(
            "the discriminator's answer is detached, beside a reconstruction term",
            """
            def train(net_g, net_d, loader):
                bce = nn.BCELoss()
                optimizer_g = torch.optim.Adam(net_g.parameters())
                for image, target in loader:
                    fake = net_g(image)
                    answer = net_d(fake).detach()  # error
                    loss = F.l1_loss(fake, target) + bce(answer, torch.ones(len(image)))
                    optimizer_g.zero_grad()
                    loss.backward()
                    optimizer_g.step()
            """,
        ),
        Bad(
            "networks whose classes are in sight",
            """
            class Generator(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(100, 784)

                def forward(self, z):
                    return torch.tanh(self.layer(z))

            class Discriminator(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(784, 1)

                def forward(self, x):
                    return self.layer(x)

            def train(batches):
                generator, discriminator = Generator(), Discriminator()
                optimizer_g = torch.optim.Adam(generator.parameters())
                for z in batches:
                    optimizer_g.zero_grad()
                    fake = generator(z)
                    loss = -discriminator(fake.detach()).mean()  # error
                    loss.backward()
                    optimizer_g.step()
            """,
        ),
        Good(
            "the weight of a term is detached on purpose",
            """
            def train(net_g, net_d, loader, ones):
                opt_g = torch.optim.Adam(net_g.parameters())
                for image, target in loader:
                    fake = net_g(image)
                    score = net_d(fake)
                    weight = torch.sigmoid(score).detach()
                    loss = (weight * (fake - target).abs()).mean()
                    opt_g.zero_grad()
                    loss.backward()
                    opt_g.step()
            """,
        ),
        Good(
            "one optimizer holds both networks",
            """
            def train(net_g, net_d, loader, bce, zeros):
                params = [*net_g.parameters(), *net_d.parameters()]
                optimizer = torch.optim.Adam(params)
                for image, target in loader:
                    fake = net_g(image)
                    loss = F.l1_loss(fake, target) + bce(net_d(fake.detach()), zeros)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "both networks are updated from one backward",
            """
            def train(net_g, net_d, loader, bce, zeros):
                opt_g = torch.optim.Adam(net_g.parameters())
                opt_d = torch.optim.Adam(net_d.parameters())
                for image, target in loader:
                    fake = net_g(image)
                    loss = F.l1_loss(fake, target) + bce(net_d(fake.detach()), zeros)
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    loss.backward()
                    opt_g.step()
                    opt_d.step()
            """,
        ),
        Good(
            "Lightning hands out the optimizers, and the module calls itself",
            """
            import lightning as L
            import torch

            class Lit(L.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.automatic_optimization = False

                def forward(self, z):
                    return self.generator(z)

                def training_step(self, batch, batch_idx):
                    opt_g, opt_d = self.optimizers()
                    z = torch.randn(8, 100)
                    opt_d.zero_grad()
                    d_loss = self.discriminator(self(z).detach()).mean()
                    self.manual_backward(d_loss)
                    opt_d.step()
                    opt_g.zero_grad()
                    g_loss = -self.discriminator(self(z)).mean()
                    self.manual_backward(g_loss)
                    opt_g.step()
            """,
        ),
        Good(
            "the target network answers",
            """
            def train(online, target, loader):
                optimizer = torch.optim.Adam(online.parameters())
                for x, z in loader:
                    wanted = target(x).detach()
                    optimizer.zero_grad()
                    F.mse_loss(online(z), wanted).backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look behind the loss of each update for its network's output, detached."""
        for loop in file.loops:
            for backward in loop.backwards:
                optimizer = _only_optimizer(loop, backward)
                if optimizer is None or backward.loss is None:
                    continue
                for cut in _cuts_before_judge(backward.loss, optimizer):
                    yield self._report(cut, backward.call)

    def _report(self, cut: Result, backward: Call) -> Finding:
        text, kept = cut.call.text, cut.call.receiver_text
        is_plain = cut.call.method == "detach" and kept.replace(".", "").isidentifier()
        return self.finding(
            cut.call.place,
            f"`{text}` cuts the loss of `{backward.text}` off from the network that it is meant "
            "to train",
            f"use `{kept}` in this update; detach it only where the other network is trained",
            Fix((Edit("replace", cut.call.place, kept),), safe=False) if is_plain else None,
        )


def _only_optimizer(loop: TrainingLoop, backward: Backward) -> Value | None:
    """The optimizer that alone uses the gradients of a backward."""
    later = [other.call.index for other in loop.backwards if other.call.index > backward.call.index]
    end = min(later, default=len(loop.trace.events))
    used = [step.optimizer for step in loop.steps if backward.call.index < step.call.index < end]
    return used[0] if len(used) == 1 else None


def _cuts_before_judge(loss: Value, optimizer: Value) -> Iterator[Result]:
    """Where a network's output is cut off on its way through another network into the loss."""
    graph = graph_of(loss)
    trains_itself = any(is_output_of(value, optimizer) for value in graph.reached)
    for cut in graph.cuts:
        if not isinstance(cut, Result) or cut.call.method != "detach":
            continue
        if gradients(cut.call.context) is not True:
            continue
        is_lost = not trains_itself or _is_whole_term(cut, graph.reached, optimizer)
        if _goes_into_judge(cut, graph.reached, optimizer) or (
            is_lost and _comes_from_judge(cut, optimizer)
        ):
            yield cut


def _goes_into_judge(cut: Result, reached: tuple[Value, ...], optimizer: Value) -> bool:
    """Whether the trained network's detached output is what another network judges."""
    source = cut_source(cut)
    if source is None or not any(is_output_of(option, optimizer) for option in layers(source)):
        return False
    return any(
        _is_other_network(call, optimizer) and any(same(cut, arg) for arg in call.args)
        for value in reached
        for call in made_by(value)
    )


def _is_whole_term(cut: Result, reached: tuple[Value, ...], optimizer: Value) -> bool:
    """Whether a loss function compares the cut value with nothing that the network computed."""
    terms = [
        call
        for value in reached
        for call in made_by(value)
        if _LOSS.search(call.qualified or maker(call.callee) or call.name)
        and any(same(cut, arg) for arg in call.args)
    ]
    return bool(terms) and not any(
        is_output_of(value, optimizer)
        for call in terms
        for arg in call.args
        for value in graph_of(arg).reached
    )


def _comes_from_judge(cut: Result, optimizer: Value) -> bool:
    """Whether another network's detached judgement is of the trained network's output."""
    source = cut_source(cut)
    if source is None:
        return False
    return any(
        _is_other_network(call, optimizer)
        and any(is_output_of(value, optimizer) for arg in call.args for value in layers(arg))
        for option in layers(source)
        for call in made_by(option)
    )


def _is_other_network(call: Call, optimizer: Value) -> bool:
    """Whether the call is the forward of a network that the optimizer was not made from."""
    return is_forward(call) and not trains(optimizer, call)
