"""APGD: agreement with the authors' code from the same draws, what a run costs, what is refused."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import autopgd_base as official
from sklearn.datasets import load_digits
from torch import Tensor, nn

from atbench.attacks import Objective, ball, cross_entropy
from atbench.attacks.ascent import loop
from atbench.attacks.ascent.loop import Ascent, misclassified
from atbench.attacks.gradient.apgd import APGD, TargetedAPGD
from atbench.attacks.gradient.apgd_schedule import APGDSteps, SparseAPGDSteps
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images

F64 = torch.float64
#: About half of the images of `trained` hold at these radii.
EPS = {"linf": 0.11, "l2": 0.55, "l1": 1.2}
KINDS = ("ce", "dlr", "targeted")


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network trained on FGSM images of the 8 × 8 digits, with 60 others that it gets right."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        network = nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 10))
        weights = list(network.parameters())
        speed = [torch.zeros_like(weight) for weight in weights]
        for rows in torch.randperm(1400).repeat(4).split(100):
            near = x[rows].requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(network(near), y[rows]), near)
            loss = F.cross_entropy(network((near.detach() + 0.1 * grad.sign()).clamp(0, 1)), y[rows])
            for weight, v, grad in zip(weights, speed, torch.autograd.grad(loss, weights), strict=True):
                weight.data.sub_(0.1 * v.mul_(0.9).add_(grad))  # by hand: torch.optim takes seconds to import
    network = network.double().requires_grad_(False)
    x, y = x[1400:].double(), y[1400:]
    # Off their grid of 1/16: L1 puts pixels exactly on ties there, which rounding breaks.
    x = 0.05 + 0.9 * x + 0.05 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64) - 1)
    right = network(x).argmax(dim=1) == y
    return network, x[right][:60], y[right][:60]


class OfficialDraws:
    """The numbers that the authors' code draws from the global state, in its order: at each start those of the examples
    that are left, and in L1 once more for each of the three parts of its schedule, to no purpose.
    """

    def at(self, *place: int | str) -> OfficialDraws:
        return self

    def take(self, rows: Tensor) -> OfficialDraws:
        return self

    def uniform(self, like: Tensor) -> Tensor:
        return 2 * torch.rand(like.shape) - 1

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape)


class OfficialL1Draws(OfficialDraws):
    def normal(self, like: Tensor) -> Tensor:
        drawn = super().normal(like)
        torch.randn((3, *like.shape))
        return drawn


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The authors' code casts to float32; in double precision, differences of rounding do not grow into others. And it
    counts rounding as pixels moved (see `SparseAPGDSteps.MOVED`).
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(official, "L0_norm", lambda delta: (delta.abs() > SparseAPGDSteps.MOVED).flatten(1).sum(dim=1))
    torch.set_default_dtype(F64)
    with torch.random.fork_rng():
        yield
    torch.set_default_dtype(torch.float32)


def theirs(network: nn.Module, kind: str, norm: str, **options: Any) -> Any:
    """The authors' attack; L1 with the schedule that AutoAttack has for it."""
    options |= {"norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm], "eps": EPS[norm], "use_largereps": norm == "l1"}
    if kind == "targeted":
        return official.APGDAttack_targeted(network, n_target_classes=3, **options)
    return official.APGDAttack(network, loss=kind, **options)


def ours(kind: str, norm: str, **options: Any) -> APGD:
    if kind == "targeted":
        return TargetedAPGD(norm, EPS[norm], targets=3, **options)
    return APGD(norm, EPS[norm], objective=kind, **{"restarts": 1, **options})


class Recorder(nn.Module):
    """A network that keeps what it was shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.points = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.network(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", list(EPS))
@pytest.mark.parametrize("kind", ["ce", "dlr"])
@pytest.mark.slow
def test_every_point_is_that_of_the_authors_code(
    kind: str, norm: str, trained: Any, double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, y = trained
    x, y, reference, own = x[:30], y[:30], Recorder(network), Recorder(network)
    theirs(reference, kind, norm, seed=3).perturb(x, y)
    torch.manual_seed(3)
    monkeypatch.setattr(loop, "REPACK", 2.0)  # all examples to the end, as there
    ours(kind, norm)(Aim(own), x, y, OfficialL1Draws() if norm == "l1" else OfficialDraws())
    points, expected = torch.stack(own.points), torch.stack(reference.points[1:])  # it looks at x first
    assert points.shape == expected.shape and len(points) == (103 if norm == "l1" else 101)
    searched = torch.ones(points.shape[:2], dtype=torch.bool)
    if norm != "l1":
        # After a misclassified point the gradient of DLR may be nothing but rounding (L1 goes on from such points).
        right = torch.stack([network(point).argmax(dim=1) == y for point in expected])
        searched[1:] = right[:-1].cumprod(dim=0).bool()
    assert searched[-1].sum() >= 8
    # On a flat top rounding decides which point is the best; the least step is 0.005.
    torch.testing.assert_close(points[searched], expected[searched], rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", list(EPS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_same_draws_break_what_the_authors_code_breaks(kind: str, norm: str, trained: Any, double: None) -> None:
    network, x, y = trained
    restarts = 2 if kind != "targeted" else 1
    expected = network(theirs(network, kind, norm, n_iter=50, n_restarts=restarts, seed=3).perturb(x, y))
    torch.manual_seed(3)
    rng = OfficialL1Draws() if norm == "l1" else OfficialDraws()
    x_adv = ours(kind, norm, steps=50, restarts=restarts)(Aim(network), x, y, rng)
    broken = expected.argmax(dim=1) != y
    assert 0.25 < broken.double().mean() < 0.75
    assert torch.equal(network(x_adv).argmax(dim=1) != y, broken)


@pytest.mark.parametrize("norm", list(EPS))
def test_what_a_run_costs(norm: str) -> None:
    """A forward at each point, a backward at each but the last; L1 has three runs in one; APGD-T looks at x once."""
    network, steps = Linear(), 10
    x, y = images(network, n=6)
    runs = 3 if norm == "l1" else 1
    for attack, starts, more in (
        (APGD(norm, 1e-6, steps, restarts=2), 2, 0),
        (APGD(norm, 1e-6, steps, objective="dlr", eot_samples=3), 3, 0),
        (TargetedAPGD(norm, 1e-6, steps, targets=9), 4, 6),
    ):
        aim = Aim(network)
        attack(aim, x, y, draws(6))
        assert aim.gradients == 6 * starts * steps and aim.passes == 6 * starts * (steps + runs) + more


def test_who_is_broken_by_the_start_costs_one_pass() -> None:
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    objective, steps = Objective(aim.logits, cross_entropy, y), APGDSteps(ball("l2"), 1, 9, 1)
    ascent = Ascent(objective, x, ball("l2"), 1, steps, 9, misclassified(1 - y.clamp(max=1)), "first_or_best")
    assert torch.equal(ascent.run(x).x_adv, x) and aim.passes == len(x)
    APGD("l2", 1.0, 9)(aim, x, 1 - y.clamp(max=1), draws(len(x)))
    assert aim.passes < 10 * len(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_answer_is_the_first_misclassified_point_or_the_best(
    norm: str, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, y = trained
    monkeypatch.setattr(loop, "REPACK", 2.0)
    recorder = Recorder(network)
    x_adv = APGD(norm, EPS[norm], 20, restarts=1)(Aim(recorder), x, y, draws(len(x)))
    points = torch.stack(recorder.points)
    wrong = torch.stack([network(point).argmax(dim=1) != y for point in points])
    value = torch.stack([cross_entropy(network(point), y) for point in points])
    chosen = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), value.argmax(dim=0))
    assert wrong.any(dim=0).any() and not wrong.any(dim=0).all()
    torch.testing.assert_close(x_adv, points[chosen, torch.arange(len(x))], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", list(EPS))
def test_dropping_broken_examples_changes_nothing(norm: str, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-packed at every step, by the default, never: each example's first misclassified point, and fewer passes."""
    network, x, y = trained
    x, y, answers, passes = x[:30], y[:30], [], []
    for share in (0.0, 0.25, 2.0):
        monkeypatch.setattr(loop, "REPACK", share)
        aim = Aim(network)
        answers.append(APGD(norm, EPS[norm], 20, restarts=1)(aim, x, y, draws(len(x))))
        passes.append(aim.passes)
    torch.testing.assert_close(answers[0], answers[2], rtol=0, atol=1e-9)
    torch.testing.assert_close(answers[1], answers[2], rtol=0, atol=1e-9)
    assert passes[0] <= passes[1] < passes[2]


@pytest.mark.parametrize("norm", list(EPS))
def test_a_later_restart_never_makes_an_answer_worse(norm: str, trained: Any) -> None:
    network, x, y = trained
    once, thrice = (
        network(APGD(norm, EPS[norm] / 2, 6, restarts=restarts)(Aim(network), x, y, draws(len(x))))
        for restarts in (1, 3)
    )
    held = thrice.argmax(dim=1) == y
    assert (once.argmax(dim=1) == y)[held].all()
    gain = cross_entropy(thrice, y)[held] - cross_entropy(once, y)[held]
    assert (gain >= -1e-12).all() and (gain > 1e-6).any()


def test_targets_are_the_likeliest_wrong_classes_in_order() -> None:
    network = Linear()
    x, y = images(network)
    order = network(x).argsort(dim=1, descending=True)
    for targets, expected in ((2, 2), (9, 4)):
        tries = list(TargetedAPGD("l2", 1.0, targets=targets).restart_args(Aim(network), x, y))
        aims = torch.stack([given[0] for _, given in tries], dim=1)
        assert torch.equal(aims, order[:, 1 : expected + 1])
        assert len({place for place, _ in tries}) == expected, "each has random numbers of its own"


class Wavering(nn.Module):
    """z(x) ± noise(x), the sign changing from pass to pass: means over two passes are z(x)."""

    def __init__(self) -> None:
        super().__init__()
        # With two classes the margin is linear in the logits, so that its mean is the margin of the mean.
        self.steady, self.noise, self.signs = Linear(classes=2), Linear(seed=1, classes=2), cycle((1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.steady(x) + 3 * next(self.signs) * self.noise(x)


@pytest.mark.parametrize("norm", list(EPS))
def test_draws_average_a_network_that_wavers(norm: str) -> None:
    network = Wavering()
    x, y = images(network.steady)
    eps = float(distance(network.steady, x, y, norm).quantile(0.5))

    def attack(n: int, aim: Aim) -> Tensor:
        return APGD(norm, eps, 12, objective="margin", eot_samples=n)(aim, x, y, draws(len(x)))

    def broken(x_adv: Tensor) -> Tensor:
        return network.steady(x_adv).argmax(dim=1) != y

    expected = attack(1, Aim(network.steady))
    assert broken(expected).any() and (broken(attack(2, Aim(network))) == broken(expected)).all()
    assert (broken(attack(1, Aim(network))) != broken(expected)).any()


@pytest.mark.parametrize(("attack", "classes"), [(APGD("l2", 1.0, objective="dlr"), 2), (TargetedAPGD("l2", 1.0), 3)])
def test_too_few_classes_are_refused(attack: APGD, classes: int) -> None:
    for number in (classes, classes + 1):
        network = Linear(classes=number)
        x, y = images(network)
        if number == classes:
            with pytest.raises(ConfigError, match=f"the network has {classes} classes"):
                attack(Aim(network), x, y, draws(len(x)))
        else:
            assert not torch.equal(attack(Aim(network), x, y, draws(len(x))), x)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.objective: clr"):
        APGD("linf", 0.1, objective="clr")


@pytest.mark.parametrize(("norm", "restarts", "targets"), [("linf", 1, 9), ("l2", 1, 9), ("l1", 5, 5)])
def test_what_is_not_given_is_what_autoattack_has(norm: str, restarts: int, targets: int) -> None:
    """fra31/auto-attack, autoattack.py, version standard."""
    assert APGD(norm, 1.0).restarts == restarts and APGD(norm, 1.0, objective="dlr").restarts == 1
    assert TargetedAPGD(norm, 1.0).targets == targets and TargetedAPGD(norm, 1.0).restarts == 1
