"""MSD: one trajectory through three balls, against a slow loop; one norm alone is that norm's PGD to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import BALLS, GradientAttack, Objective, ball, cross_entropy
from atbench.attacks.ascent.multi_norm import MultiSteepest
from atbench.bench.steps import operations as cost
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.msd import Msd
from atbench.training.cost import Count
from tests.support import reference, worlds
from tests.support.configs import resolved
from tests.support.union import RADII, SIZES, draws, images

REACH = {"l1": 1.2, "l2": 0.9, "linf": 1.0}


def make(given: TrainData | None = None, radii: dict[str, float] = RADII, **changes: Any) -> Msd:
    search = worlds.attack(**{"start": "zero", "eps": RADII["linf"], **changes})
    method = Msd(worlds.cnn(), search, radii, REACH, [1, 5])
    worlds.start(method, given or worlds.data())
    return method


class Seen(Objective):
    """Cross-entropy that keeps every point it was asked about, with its values."""

    def __init__(self, network: nn.Module, y: Tensor) -> None:
        super().__init__(network, cross_entropy, y)
        self.looks: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        value, outputs = super().__call__(x_adv, rows, step)
        self.looks.append((x_adv.detach().clone(), value.detach(), x_adv.requires_grad))
        return value, outputs


@pytest.mark.parametrize("start", ["zero", "uniform"])
@pytest.mark.parametrize("norm", list(BALLS))
def test_one_norm_alone_is_pgd_with_its_best_point_to_the_bit(norm: str, start: str) -> None:
    network, x, y = images()
    x = x.round(decimals=1).clamp(0, 1)
    union = MultiSteepest({norm: RADII[norm]}, {norm: SIZES[norm]}, 6, start, (3, 3))
    plain = GradientAttack(norm, RADII[norm], 6, SIZES[norm], start, return_point="best", sparsity=3 / 64)
    objective = Objective(network, cross_entropy, y)
    found, expected = union(objective, x, rng=draws()), plain(objective, x, rng=draws())
    assert torch.equal(found, expected) and not torch.equal(found, x)
    begin = (x + 0.5 * worlds.attack(eps=1.0).begin(x, 1.0, draws())).clamp(0, 1)  # outside of the ball
    assert torch.equal(union(objective, x, start=begin), plain(objective, x, start=begin))


def shrunk(delta: list[float], eps: float) -> list[float]:
    """The nearest point of the L1 ball, its λ by bisection."""
    low, high = 0.0, max(abs(d) for d in delta)
    if math.fsum(abs(d) for d in delta) <= eps:
        return delta
    for _ in range(200):
        middle = (low + high) / 2
        over = math.fsum(max(abs(d) - middle, 0.0) for d in delta) > eps
        low, high = (middle, high) if over else (low, middle)
    return [math.copysign(max(abs(d) - high, 0.0), d) for d in delta]


def slow(network: nn.Module, x: Tensor, y: Tensor, counts: list[int]) -> Tensor:
    """MSD of one image whose balls do not touch the box, number by number."""

    def look(delta: list[float]) -> tuple[float, list[float]]:
        z = (x + torch.tensor(delta, dtype=x.dtype).view_as(x)).requires_grad_()
        value = -network(z).log_softmax(dim=1)[0, y[0]]
        return value.item(), torch.autograd.grad(value, z)[0].flatten().tolist()

    delta = [0.0] * x.numel()
    best, (most, _) = delta, look(delta)
    for count in counts:
        _, g = look(delta)
        heavy = sorted(range(len(g)), key=lambda j: -abs(g[j]))[:count]
        step = [math.copysign(SIZES["l1"] / count, g[j]) if j in heavy else 0.0 for j in range(len(g))]
        one = shrunk([d + s for d, s in zip(delta, step, strict=True)], RADII["l1"])
        length = math.sqrt(math.fsum(v * v for v in g))
        two = [d + SIZES["l2"] * v / length for d, v in zip(delta, g, strict=True)]
        scale = min(1.0, RADII["l2"] / math.sqrt(math.fsum(v * v for v in two)))
        two = [scale * v for v in two]
        top, ahead = RADII["linf"], zip(delta, g, strict=True)
        sup = [min(max(d + math.copysign(SIZES["linf"], v), -top), top) for d, v in ahead]
        values = [look(candidate)[0] for candidate in (one, two, sup)]
        value, delta = max(zip(values, (one, two, sup), strict=True), key=lambda pair: pair[0])
        if value > most:
            most, best = value, delta
    return x + torch.tensor(best, dtype=x.dtype).view_as(x)


def test_the_search_is_the_paper_s_number_by_number() -> None:
    network, x, y = images(inset=0.45)
    radii = RADII
    union = MultiSteepest(radii, SIZES, 7, pixels=(2, 6))
    found, seen = draws(), Seen(network, y)
    counts = [int(found.scalar(2, 7)) for _ in range(7)]
    assert len(set(counts)) > 2
    x_adv = union(seen, x, rng=draws())
    chosen = {
        int(k) for at in range(1, 28, 4) for k in torch.stack([v for _, v, _ in seen.looks[at : at + 3]]).argmax(0)
    }
    assert chosen == {0, 1, 2}, "every norm wins somewhere, or the comparison would be one of fewer"
    for i in range(4):
        torch.testing.assert_close(
            x_adv[i : i + 1], slow(network, x[i : i + 1], y[i : i + 1], counts), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("start", ["zero", "uniform"])
def test_candidates_are_legal_and_the_worst_is_taken(start: str) -> None:
    network, x, y = images()
    x = torch.where(torch.arange(64).view(8, 8) % 2 == 0, x.round(), x)  # half of the pixels black or white
    seen, steps = Seen(network, y), 6
    x_adv = MultiSteepest(RADII, SIZES, steps, start, (1, 5))(seen, x, rng=draws())
    assert len(seen.looks) == 1 + 4 * steps - 1
    for step in range(steps):
        looks = seen.looks[1 + 4 * step : 5 + 4 * step]
        for (norm, eps), (point, _, with_grad) in zip(RADII.items(), looks, strict=False):
            assert bool((ball(norm).norm(point - x) <= eps + 1e-12).all()) and not with_grad
            assert bool((point >= 0).all()) and bool((point <= 1).all())
        if step < steps - 1:
            _, value, with_grad = looks[3]
            torch.testing.assert_close(value, torch.stack([v for _, v, _ in looks[:3]]).amax(0), rtol=0, atol=1e-12)
            assert with_grad
    final = cross_entropy(network(x_adv), y)
    torch.testing.assert_close(final, torch.stack([v for _, v, _ in seen.looks]).amax(0), rtol=0, atol=1e-12)
    assert bool((final > seen.looks[0][1]).all()), "the search has got somewhere"


def test_without_a_gradient_nothing_is_nan_and_ties_go_to_the_later_norm() -> None:
    _, x, y = images()
    flat = Seen(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().requires_grad_(False), y)
    with torch.no_grad():
        for parameter in flat.network.parameters():  # type: ignore[attr-defined]
            parameter.zero_()
    assert torch.equal(MultiSteepest(RADII, SIZES, 4, pixels=(1, 5))(flat, x, rng=draws()), x)
    begin = (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)).clamp(0, 1)
    flat.looks.clear()
    x_adv = MultiSteepest(RADII, SIZES, 2, pixels=(2, 2))(flat, x, start=begin)
    (l1, l2, linf), winner = (look[0] for look in flat.looks[1:4]), flat.looks[4][0]
    assert torch.equal(winner, linf) and not torch.equal(l1, linf) and not torch.equal(l2, linf)
    distances = torch.stack([(p - begin).flatten(1).norm(dim=1) for p in (l1, l2, linf, x_adv)])
    torch.testing.assert_close(distances[3], distances[:3].amin(0))  # of equals the first: the start, made legal


def test_a_random_start_is_in_all_balls() -> None:
    x = torch.full((200, 1, 8, 8), 0.5, dtype=torch.float64)
    for radii in (RADII, {"l2": 1.0, "l1": 0.5, "linf": 0.3}):
        delta = MultiSteepest(radii, SIZES, 1, "uniform").begin(x, draws()) - x
        lengths = {norm: ball(norm).norm(delta) for norm in radii}
        assert all(bool((lengths[norm] <= eps + 1e-12).all()) for norm, eps in radii.items())
        tight = torch.stack([lengths[norm] / eps for norm, eps in radii.items()]).amax(0)
        assert float(tight.mean()) > 0.9 and float(delta.std()) > 0


def test_an_l1_step_is_spent_on_pixels_that_can_move() -> None:
    """The slope is steepest where the image is black and would have to become blacker."""
    weights = torch.linspace(-1, 1, 64, dtype=torch.float64)
    weights[:20] *= 10
    y = torch.zeros(1, dtype=torch.long)

    def network(z: Tensor) -> Tensor:
        return torch.stack([torch.zeros(1, dtype=z.dtype), (z.flatten(1) * weights).sum(1)], dim=1)

    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    x.view(-1)[:20] = 0.0
    delta = MultiSteepest({"l1": 1.0}, {"l1": 0.3}, 1, pixels=(4, 4))(Objective(network, cross_entropy, y), x) - x
    assert sorted(delta.flatten().nonzero().flatten().tolist()) == [60, 61, 62, 63]
    assert float(delta.abs().sum()) == pytest.approx(0.3) and float(delta.max()) == pytest.approx(0.3 / 4)


def test_the_pixels_of_a_step_are_drawn_once_for_all_processes() -> None:
    x = torch.full((6, 1, 8, 8), 0.5, dtype=torch.float64)
    union = MultiSteepest({"l1": 1.0}, {"l1": 0.1}, 200, pixels=(2.4, 5.6))
    shares = union._sparsities(x, draws())
    assert {round(64 * share) for share in shares} == {2, 3, 4, 5, 6}
    assert shares == union._sparsities(x[:3], draws(0, 2)) == union._sparsities(x[:3], draws(1, 2))


@pytest.mark.parametrize(("dataset", "least", "greatest"), [("digits", 2, 7), ("mnist", 4, 17), ("cifar10", 5, 20)])
def test_the_number_of_pixels_follows_the_radius(dataset: str, least: int, greatest: int) -> None:
    cfg = resolved("method=msd", f"dataset={dataset}")
    assert [round(count) for count in cfg.method.pixels] == [least, greatest]


def test_the_paper_s_steps_are_the_authors() -> None:
    cfg = resolved("experiment=paper/msd")
    sizes = {norm: cfg.method.rel_path_length[norm] * eps / cfg.attack.steps for norm, eps in cfg.method.radii.items()}
    assert sizes == pytest.approx({"l1": 1.0, "l2": 0.05, "linf": 0.003})
    assert list(sizes) == ["l1", "l2", "linf"] and cfg.attack.eps == 0.03 and cfg.attack.bn == "train"


def test_loss_is_cross_entropy_on_what_was_found() -> None:
    method = make()
    batch: Batch = worlds.check_pure(method, worlds.data().batch(0, 0))
    loss = method.loss(batch)
    logits = method.model(batch.x_adv)
    assert loss.total.item() == pytest.approx(reference.mean(reference.ce(logits, batch.y)), abs=1e-12)
    clean = reference.mean(reference.ce(method.model(batch.x), batch.y))
    assert loss.total.item() > clean + 0.005
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        float((logits.argmax(1) == batch.y).float().mean())
    )
    within = [ball(norm).norm(batch.x_adv - batch.x) <= eps + 1e-12 for norm, eps in RADII.items()]
    assert bool(torch.stack(within).any(0).all())


@pytest.mark.parametrize("norms", [("linf",), ("l2", "linf"), ("l1", "l2", "linf")])
def test_cost_is_the_floor(norms: tuple[str, ...]) -> None:
    method = make(radii={norm: RADII[norm] for norm in norms}, steps=5)
    batch = worlds.data().batch(0, 0)
    with Count() as count, torch.no_grad():
        method.model(batch.x)
    assert method.forward_cost(5) == {1: 14, 2: 23, 3: 28}[len(norms)]
    assert 0.9 * method.forward_cost(5) <= cost(method, batch) / count.total <= 1.02 * method.forward_cost(5)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given, start="uniform"))


@pytest.mark.parametrize(
    ("radii", "reach", "changes", "said"),
    [
        ({}, REACH, {}, r"method\.radii.*names no norm"),
        ({"l3": 1.0}, REACH, {}, r"method\.radii.*l3.*no such norm"),
        ({"l1": 1.0}, {"l2": 1.0}, {}, r"method\.rel_path_length.*nothing of l1"),
        (RADII, REACH, {"eps": 0.3}, r"attack\.eps.*0\.3.*method\.radii\.linf=0\.08.*dataset\.threat\.linf\.eps"),
        (RADII, REACH, {"start": "gaussian"}, r"attack\.start.*zero, uniform"),
    ],
)
def test_what_is_refused(radii: dict[str, float], reach: dict[str, float], changes: dict[str, Any], said: str) -> None:
    search = worlds.attack(**{"start": "zero", "eps": RADII["linf"], **changes})
    with pytest.raises(ConfigError, match=said):
        Msd(worlds.cnn(), search, radii, reach, [1, 5])


def test_a_range_of_pixels_has_two_ends() -> None:
    with pytest.raises(ConfigError, match=r"method\.pixels"):
        MultiSteepest(RADII, SIZES, 3, pixels=[5, 2])
