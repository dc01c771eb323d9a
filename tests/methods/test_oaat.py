"""OAAT: the schedule, three kinds of batches, LPIPS by an average of the past, and what AWP climbs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.oaat import Oaat, appearance
from atbench.models import Ensemble, Network
from atbench.models.preact import WRN
from atbench.models.residual import ResNet
from tests.support import reference, worlds

#: Epochs of 8, from 0: the last of the first quarter, one of TRADES, the first and the last that take turns.
EARLY, PLAIN, FIRST, LAST = 1, 4, 6, 7


def make(
    epoch: int = PLAIN, step: int = 0, norm: str = "none", activation: str = "relu", **options: Any
) -> tuple[Oaat, Batch]:
    given = worlds.data(worlds.source(inset=0.1))
    settings = {"max_eps": 0.16, "early_eps": 0.05, "large_eps": 0.24, **options}
    attack = worlds.attack(bn="train" if norm == "batch" else "eval")
    method = Oaat(worlds.cnn(norm=norm, activation=activation), attack, **settings)
    with torch.no_grad():
        method.model.head.weight.mul_(20)  # predictions that an attack moves
    for seed, network in enumerate((method.average, method.reference), start=5):
        network.network.load_state_dict(worlds.cnn(norm=norm, seed=seed).state_dict())
    clock = worlds.start(method, given, epochs=8)
    clock.epoch, clock.step = epoch, step
    return method, given.batch(epoch, step)


@pytest.mark.parametrize(("epochs", "n"), [(110, 28), (200, 50)])
def test_the_schedule_is_the_authors(epochs: int, n: int) -> None:
    method, _ = make(max_eps=16 / 255, early_eps=4 / 255)
    method.clock.epochs = epochs
    for e in range(1, epochs + 1):
        method.clock.epoch = e - 1
        late = e > int(3 * epochs / 4)
        assert method.eps == pytest.approx(4 / 255 if e <= epochs // 4 else 16 / 255 * e / epochs, rel=1e-14)
        assert method.turns == (e - int(3 * epochs / 4) if late else 0, n)
        assert method.turn == ("large" if late else "plain")
        assert method.beta == pytest.approx(1.5 + 1.5 * (e - int(3 * epochs / 4)) / n if late else 1.5, rel=1e-14)
    method.alternate = 1.0
    assert method.turn == "plain" and method.beta == 1.5


def looks(network: Network, x: Tensor) -> list[list[float]]:
    """Of each image, the channels at each pixel of the last stage of each size, brought to length 1 one by one."""
    rows: list[list[float]] = [[] for _ in x]
    for stage in (1, 2, 3):
        h = network.features(x, upto=stage)
        _, _, height, width = h.shape
        for i, image in enumerate(h):
            pixels = image.flatten(1).T.tolist()
            for pixel in pixels:
                length = math.sqrt(math.fsum(each**2 for each in pixel)) + 1e-10
                rows[i] += [each / length / math.sqrt(height * width) for each in pixel]
    return rows


def test_the_distance_is_lpips_by_loops() -> None:
    network = worlds.cnn(seed=3)
    (x, _), (other, _) = worlds.middle(), worlds.middle(seed=1)
    wanted = [math.dist(a, b) for a, b in zip(looks(network, x), looks(network, other), strict=True)]
    found = (appearance(network, x) - appearance(network, other)).norm(dim=1)
    assert found.tolist() == pytest.approx(wanted, abs=1e-12) and min(wanted) > 0.1


def test_a_resnet_s_blocks_are_seen_rectified_and_a_wrn_s_are_not() -> None:
    shape = ((3, 32, 32), 4, (0.5,) * 3, (0.5,) * 3)
    x = torch.rand(2, 3, 32, 32)
    for network, ends in (
        (ResNet(*shape, blocks=[1, 2, 1, 1], width=4), ("layer1_0", "layer2_1", "layer3_0", "layer4_0")),
        (WRN(*shape, depth=10, width=1), ("block1_0", "block2_0", "block3_0")),
    ):
        network.eval()
        names = [name for name, _ in network.stages.named_children()]
        parts = []
        for end in ends:
            h = network.features(x, upto=names.index(end))
            h = h.relu() if isinstance(network, ResNet) else h
            parts.append(nn.functional.normalize(h, dim=1).flatten(1) / math.sqrt(h.shape[2] * h.shape[3]))
        torch.testing.assert_close(appearance(network, x), torch.cat(parts, dim=1))


def climb(method: Oaat, batch: Batch, radius: float, start: float, weight: float, steps: int, size: float) -> Tensor:
    """The search by hand, in the box and the ball."""
    x_adv, seen = batch.x + start * method.rng().uniform(batch.x), appearance(method.reference.network, batch.x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        far = (appearance(method.reference.network, x_adv) - seen).norm(dim=1).mean()
        value = nn.functional.cross_entropy(method.model(x_adv), batch.y) - weight * far
        (grad,) = torch.autograd.grad(value, x_adv)
        x_adv = (x_adv.detach() + size * grad.sign()).clamp(batch.x - radius, batch.x + radius).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize(
    ("place", "search"),
    [
        ((EARLY, 0), (0.05, 0.05, 0.0, 2, 0.025)),  # of three steps half, twice as long
        ((PLAIN, 1), (0.1, 0.05, 0.0, 3, 0.025)),
        ((LAST, 2), (0.24, 0.05, 0.0, 3, 0.06)),
        ((FIRST, 1), (0.14, 0.14, 15.0, 3, 0.035)),
        ((LAST, 3), (0.16, 0.16, 30.0, 3, 0.04)),
    ],
)
def test_the_search_is_that_of_its_turn(place: tuple[int, int], search: tuple[Any, ...]) -> None:
    method, batch = make(*place, lpips=30.0)
    found = method.perturb(batch).x_adv
    torch.testing.assert_close(found, climb(method, batch, *search), rtol=0, atol=1e-12)
    if search[2]:
        radius, start, _, *rest = search
        assert (found - climb(method, batch, radius, start, 0.0, *rest)).abs().max() > 0.01, "without LPIPS: elsewhere"
        method.lpips = 0.0
        expected = climb(method, batch, radius, start, 0.0, *rest)
        torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("place", "beta"), [((PLAIN, 0), 1.5), ((FIRST, 1), 2.25), ((LAST, 1), 3.0)])
def test_loss_is_that_of_trades_but_for_the_large_radius(place: tuple[int, int], beta: float) -> None:
    method, batch = make(*place)
    batch = method.perturb(batch)
    clean, adversarial = method.model(batch.x), method.model(batch.x_adv)
    ce, kl = reference.mean(reference.ce(clean, batch.y)), reference.mean(reference.kl(clean, adversarial))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + beta * kl, abs=1e-12) and kl > 1e-3
    assert (loss.terms["ce"].item(), loss.terms["kl"].item()) == pytest.approx((ce, kl), abs=1e-12)


@pytest.mark.parametrize(("epoch", "alpha", "beta"), [(FIRST, 1 - 0.6 / 3, 2.25), (LAST, 1 - 1.2 / 3, 3.0)])
def test_the_target_at_a_large_radius_is_a_mixture(epoch: int, alpha: float, beta: float) -> None:
    method, batch = make(epoch, activation="silu", mix=0.6)
    batch = method.perturb(batch)
    near = batch.x_adv.clamp(batch.x - method.eps, batch.x + method.eps)
    assert (near - batch.x_adv).abs().max() > 0.05
    rows = [[reference.log_softmax(row) for row in method.model(x).tolist()] for x in (batch.x, batch.x_adv, near)]
    kl = []
    for p, large, q in zip(*rows, strict=True):
        target = [alpha * math.exp(a) + (1 - alpha) * math.exp(b) for a, b in zip(p, large, strict=True)]
        kl.append(math.fsum(t * (math.log(t) - each) for t, each in zip(target, q, strict=True)))
    ce = reference.mean(reference.ce(method.model(batch.x), batch.y))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + beta * reference.mean(kl), abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5), "gradient flows through the target"
    method.mix, method.large_eps = 0.0, method.eps
    plain = method.perturb(batch)
    clean, adversarial = method.model(plain.x), method.model(plain.x_adv)
    kl = reference.kl(clean, adversarial)
    assert method.loss(plain).total.item() == pytest.approx(ce + beta * reference.mean(kl), abs=1e-12), "TRADES"


@pytest.mark.parametrize(("place", "factor"), [((PLAIN, 0), 2.0), ((LAST, 0), 1.0), ((LAST, 1), 1.0)])
def test_awp_looks_further_out_while_batches_take_no_turns(place: tuple[int, int], factor: float) -> None:
    method, batch = make(*place)
    method.risk = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.5)  # the ascent has none
    batch = method.perturb(batch)
    far = (batch.x + factor * (batch.x_adv - batch.x)).clamp(0, 1)
    clean, adversarial = method.model(batch.x), method.model(far)
    ce, kl = reference.mean(reference.ce(clean, batch.y)), reference.mean(reference.kl(clean, adversarial))
    assert method.ascent_loss(batch).total.item() == pytest.approx(ce + method.beta * kl, abs=1e-12)


@pytest.mark.parametrize(("place", "seen"), [((PLAIN, 0), "adv x x"), ((LAST, 0), "adv x near"), ((LAST, 1), "adv x")])
def test_running_statistics_see_the_authors_forwards(place: tuple[int, int], seen: str) -> None:
    method, batch = make(*place, norm="batch")
    batch = method.perturb(batch)
    near = batch.x_adv.clamp(batch.x - method.eps, batch.x + method.eps)
    known = {"adv": batch.x_adv, "x": batch.x, "near": near}
    forwarded: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: forwarded.append(inputs[0].detach()))
    method.loss(batch)
    wanted = [known[name] for name in seen.split()]
    assert len(forwarded) == len(wanted)
    for found, image in zip(forwarded, wanted, strict=True):
        torch.testing.assert_close(found, image, rtol=0, atol=1e-15)


def test_the_average_is_the_authors_and_lpips_sees_that_of_the_epoch_before() -> None:
    given = worlds.data()
    method, _ = make(norm="batch", decay=0.7)
    states: list[dict[str, Tensor]] = []
    average: dict[str, Tensor] = {}
    for position in range(3 * given.steps):
        worlds.steps(method, given, 1, epochs=8, first=position)
        live = worlds.snapshot(method.model)  # type: ignore[arg-type]
        copied = position <= given.steps
        average = {
            name: value if copied or not value.is_floating_point() else 0.7 * average[name] + 0.3 * value
            for name, value in live.items()
        }
        for name, value in method.average.network.state_dict().items():
            torch.testing.assert_close(value, average[name], rtol=0, atol=1e-14)
        if (position + 1) % given.steps == 0:
            states.append(worlds.snapshot(method.average.network))  # type: ignore[arg-type]
        if states:
            assert worlds.same(method.reference.network.state_dict(), states[-1])
    assert not method.reference.network.training and not worlds.same(states[1], states[2])
    assert (states[2]["stages.1.0.running_mean"] - live["stages.1.0.running_mean"]).abs().max() > 1e-6


def test_what_cannot_be_cut_is_refused() -> None:
    for network in (Ensemble([worlds.cnn(), worlds.cnn()]), worlds.linear()):
        with pytest.raises(ConfigError, match="stages"):
            Oaat(network, worlds.attack(), 0.2, 0.05, 0.3)


def test_contract() -> None:
    for place in ((EARLY, 0), (LAST, 0), (LAST, 1)):
        method, batch = make(*place)
        perturbed = worlds.check_pure(method, batch)
        radius = method.large_eps if place == (LAST, 0) else method.eps
        assert worlds.legal(method.attack, batch.x, perturbed.x_adv, radius)
    worlds.check_resume(lambda: make(LAST, 1)[0], worlds.data(), count=16)
