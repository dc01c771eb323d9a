"""Tiny worlds to take a method apart in: made-up data, float64 networks, a bare trainer, checks of the contract.

`from tests.support.worlds import attack, cnn, data, linear, source, steps`. No network has BatchNorm unless asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.data import Batch, Images, Shard, Source, TrainData
from atbench.methods import Clock, Method
from atbench.models import CNN, Network
from atbench.runs.seeding import Draws, generator

Shape = tuple[int, int, int]
SHAPE: Shape = (1, 8, 8)
F64 = torch.float64


def source(
    n: int = 60, classes: int = 3, shape: Shape = SHAPE, validation: int = 12, seed: int = 0, inset: float = 0.0
) -> Source:
    """`n` images to train on, `validation` of them held out: a pattern a class plus noise, so that it can be learned.

    Pixels keep `inset` away from 0 and 1, so that smaller balls do not touch the box.
    """
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.rand((classes, *shape), generator=rng)
    y = torch.arange(n) % classes
    pixels = 0.6 * patterns[y] + 0.4 * torch.rand((n, *shape), generator=rng)
    pixels = inset + (1 - 2 * inset) * pixels
    images = Images(pixels.mul(255).round().to(torch.uint8), y)
    channels = shape[0]
    names = tuple(str(k) for k in range(classes))
    return Source("synthetic", images, lambda: images, names, (0.5,) * channels, (0.5,) * channels, validation)


def data(origin: Source | None = None, batch_size: int = 12, seed: int = 0, **options: Any) -> TrainData:
    """TrainData in float64 without augmentation; `options` go to it (`augment`, `labelled`, `extra`, `shard`)."""
    return TrainData(origin or source(), batch_size, seed, **{"dtype": torch.float64, **options})


def linear(classes: int = 3, shape: Shape = SHAPE, seed: int = 4, scale: float = 1.0) -> Network:
    """W·(x − ½) + b in float64 on unnormalised pixels, W and b random: margins to each class are known in closed form.

    With the seed it has, it is right on part of `source(classes=2)` and of `source(classes=3)`, and wrong on the rest.
    """
    rng = torch.Generator().manual_seed(seed)
    head = nn.Linear(shape[0] * shape[1] * shape[2], classes)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
        head.bias -= head.weight.sum(dim=1) / 2
    return Network(nn.Sequential(nn.Flatten()), head, (0.0,) * shape[0], (1.0,) * shape[0]).double()


def cnn(classes: int = 3, shape: Shape = SHAPE, seed: int = 0, **options: Any) -> CNN:
    """A narrow CNN in float64, by default without normalisation layers (`norm="batch"` to have them)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"width": 4, "norm": "none", **options}
        return CNN(shape, classes, (0.5,) * shape[0], (0.5,) * shape[0], **settings).double()


def middle(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images away from the edge of the box, so that it never cuts the ball."""
    rng = torch.Generator().manual_seed(seed)
    return 0.4 + 0.2 * torch.rand((n, 1, 8, 8), generator=rng, dtype=F64), torch.arange(n) % 3


def draws() -> Draws:
    return Draws(generator("cpu", 0, "search"))


def attack(**changes: Any) -> GradientAttack:
    """L∞ PGD-3 at ε = 0.1 from a uniform start, with settings replaced."""
    return GradientAttack(**{"norm": "linf", "eps": 0.1, "steps": 3, "step_size": 0.04, **changes})


def start(method: Method, given: TrainData, epochs: int = 4) -> Clock:
    """The method in train mode with its clock wound up, as the trainer does it."""
    clock = method.clock
    clock.epochs, clock.steps, clock.seed = epochs, given.steps, given.seed
    clock.rank, clock.world = given.shard.rank, given.shard.world
    method.train()
    return clock


def steps(
    method: Method, given: TrainData, count: int, *, epochs: int = 4, lr: float = 0.1, first: int = 0
) -> list[float]:
    """The losses of `count` batches of training with plain SGD, from batch `first` on. `setup` is the caller's."""
    optimizers = [torch.optim.SGD(module.parameters(), lr=lr) for module in method.groups().values()]
    losses = []
    clock = start(method, given, epochs)
    for position in range(first, first + count):
        clock.epoch, clock.step, clock.round = *divmod(position, given.steps), 0
        for number, turn in enumerate(method.inner_updates(given.batch(clock.epoch, clock.step))):
            clock.round = number
            if turn.perturb:
                turn.batch = method.perturb(turn.batch)  # `inner_updates` reads it when it goes on
            loss = method(turn.batch)
            loss.total.backward()
            losses.append(loss.total.item())
            if turn.step:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            method.after_update(turn.batch)
    return losses


def snapshot(method: Method) -> dict[str, Tensor]:
    """A copy of everything that a checkpoint would hold."""
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two snapshots are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def legal(attack: GradientAttack, x: Tensor, x_adv: Tensor, eps: float | Tensor) -> bool:
    """Whether all images are in the ball of radius `eps` and in the box, to rounding."""
    inside = bool((attack.ball.norm(x_adv - x) <= eps + 1e-12).all())
    return inside and bool((x_adv >= 0).all()) and bool((x_adv <= 1).all())


def check_pure(method: Method, batch: Batch) -> Batch:
    """`perturb` and `loss` twice: the same results, no state written. Returns the perturbed batch."""
    before = snapshot(method)
    first, second = method.perturb(batch), method.perturb(batch)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(method.loss(first).total, method.loss(first).total)
    assert torch.equal(method.loss(first).total, method.loss(second).total)
    assert same(before, snapshot(method))
    return first


def check_resume(make: Callable[[], Method], given: TrainData, count: int = 6) -> None:
    """Half of the steps, and the rest by a fresh method with the state loaded: bit-equal to all of them at once."""
    whole, half, resumed = make(), make(), make()
    steps(whole, given, count)
    steps(half, given, count // 2)
    resumed.load_state_dict(half.state_dict())
    steps(resumed, given, count - count // 2, first=count // 2)
    assert same(snapshot(whole), snapshot(resumed))


def check_ranks(make: Callable[[TrainData], Method], **options: Any) -> None:
    """Two processes find on their rows what one finds on the joint batch; their mean loss and gradient are its own."""
    outcomes = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        given = data(shard=Shard(rank, world), **options)
        method = make(given)
        start(method, given)
        batch = method.perturb(given.batch(0, 0))
        total = method(batch).total
        outcomes.append((batch, total, torch.autograd.grad(total, list(method.parameters()))))
    (joint, total, grads), (left, left_total, left_grads), (right, right_total, right_grads) = outcomes
    order = joint.index.argsort()
    parts = torch.cat([left.index, right.index]).argsort()
    assert torch.equal(joint.index[order], torch.cat([left.index, right.index])[parts])
    torch.testing.assert_close(torch.cat([left.x_adv, right.x_adv])[parts], joint.x_adv[order], rtol=0, atol=1e-12)
    torch.testing.assert_close((left_total + right_total) / 2, total, rtol=0, atol=1e-12)
    for a, b, whole in zip(left_grads, right_grads, grads, strict=True):
        torch.testing.assert_close((a + b) / 2, whole, rtol=0, atol=1e-12)
