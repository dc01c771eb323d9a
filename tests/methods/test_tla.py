"""TLA: who is anchor, positive and negative, the triplets against the formula, and PGD-AT as the limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch, Images, PadCropFlip, Source, TrainData
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.tla import Tla, hinge
from atbench.models import Ensemble, Network
from tests.support import reference, worlds


def make(given: TrainData, network: nn.Module | None = None, eps: float = 0.1, **options: Any) -> Tla:
    settings = {"negatives": 2, "margin": 0.3, "norm_weight": 0.1, **options}
    method = Tla(network or worlds.cnn(), worlds.attack(eps=eps), **settings)
    method.setup(given)
    worlds.start(method, given)
    return method


def perturbed(method: Tla, given: TrainData, step: int = 0) -> Batch:
    method.clock.epoch, method.clock.step = divmod(step, given.steps)
    return method.perturb(given.batch(*divmod(step, given.steps)))


def positions(given: TrainData, images: Tensor) -> Tensor:
    """Where each of these unaugmented images stands in the train split."""
    return (given.train.floats(dtype=images.dtype)[None] == images[:, None]).flatten(2).all(dim=2).int().argmax(dim=1)


def cosine(u: list[float], v: list[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in u) * math.fsum(b * b for b in v))


def slow_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, norm_weight: float) -> float:
    """T of the formula, row by row."""
    hinges, squares = [], []
    for u, v, w in zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True):
        near, far = 1 - abs(cosine(u, v)), 1 - abs(cosine(u, w))
        hinges.append(max(0.0, near - far + margin))
        squares += [a * a + b * b + c * c for a, b, c in zip(u, v, w, strict=True)]
    return reference.mean(hinges) + norm_weight * reference.mean(squares)


@pytest.mark.parametrize("own", [True, False])
def test_loss_is_the_formula(own: bool) -> None:
    given = worlds.data()
    method = make(given, triplet_weight=2.0, own_triplet=own)
    batch, model = perturbed(method, given), method.network
    h = [model.features(x) for x in (batch.x_adv, *batch.aux["positives"], batch.aux["negative"])]
    assert len(h) == 3 + own
    triplets = [slow_triplet(h[0], positive, h[-1], 0.3, 0.1) for positive in h[1:-1]]
    logits = model(batch.x_adv)
    ce, loss = reference.mean(reference.ce(logits, batch.y)), method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + 2 * math.fsum(triplets), abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce)
    assert 0 < loss.terms["triplet"] < len(triplets) * (1 + 0.3) and loss.terms["norm"] > 0
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        (logits.argmax(1) == batch.y).double().mean().item()
    )


def test_gradient_flows_through_all_four_images() -> None:
    given = worlds.data()
    method = make(given, triplet_weight=20.0)
    batch = perturbed(method, given)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_triplets_are_of_angles_whatever_their_sign_and_the_length() -> None:
    u, v, w = torch.randn(3, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([slow_triplet(*(t[i : i + 1] for t in (u, v, w)), 0.2, 0.0) for i in range(40)])
    found = hinge(u, v, w, 0.2)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(hinge(2 * u, 0.1 * v, 30 * w, 0.2), found, rtol=0, atol=1e-14)
    torch.testing.assert_close(hinge(u, -v, w, 0.2), found, rtol=0, atol=0)
    assert (found == 0).any() and (found > 0).any()


def test_weight_zero_is_pgd_at_to_the_bit() -> None:
    given = worlds.data()
    method, other = make(given, triplet_weight=0.0), PgdAt(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 6) == worlds.steps(other, given, 6)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_without_a_radius_the_own_triplet_is_the_margin_to_the_negative() -> None:
    given = worlds.data()
    method = make(given, eps=0.0, norm_weight=0.0)
    batch = perturbed(method, given)
    assert torch.equal(batch.x_adv, batch.x) and torch.equal(batch.aux["positives"][0], batch.x)
    batch.aux["positives"].pop()
    a, n = (method.network.features(x).tolist() for x in (batch.x, batch.aux["negative"]))
    expected = reference.mean([max(0.0, 0.3 - (1 - abs(cosine(u, w)))) for u, w in zip(a, n, strict=True)])
    assert method.loss(batch).terms["triplet"].item() == pytest.approx(expected, abs=1e-12) and expected > 0


def test_negative_is_the_most_similar_of_the_pool_in_another_class() -> None:
    """In eval mode, against a loop over single images; statistics are far from the batch's."""
    given, network = worlds.data(), worlds.cnn(norm="batch")
    with torch.no_grad():
        network(0.1 * given.train.floats(dtype=torch.float64))
    method = make(given, network)
    before = worlds.snapshot(method)
    for step in range(2):
        batch = perturbed(method, given, step)
        pool = given.stream("tla-pool", 24).batch(*divmod(step, given.steps))
        frozen = worlds.cnn(norm="batch")
        frozen.load_state_dict(network.state_dict())
        keys = [frozen.eval().features(z[None])[0].tolist() for z in pool.x]
        for i in range(len(batch)):
            query = frozen.features(batch.x_adv[i : i + 1])[0].tolist()
            among = [j for j in range(24) if pool.y[j] != batch.y[i]]
            chosen = max(among, key=lambda j: cosine(query, keys[j]))
            assert torch.equal(batch.aux["negative"][i], pool.x[chosen])
        assert (given.train.y[positions(given, batch.aux["negative"])] != batch.y).all() and batch.aux["mined"].all()
    assert worlds.same(before, worlds.snapshot(method)), "an attack in eval mode and the pool move no statistics"
    assert all(module.training for module in method.modules())
    assert all(parameter.requires_grad for parameter in method.parameters())


def opposites(classes: int = 2) -> tuple[TrainData, Network]:
    """Bright and dark images, and features in which they point apart: cos near −1 between the classes."""
    y = torch.arange(48) % classes
    x = torch.randint(0, 60, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0)) + 190 * y.view(-1, 1, 1, 1)
    images = Images(x.to(torch.uint8), y)
    origin = Source("opposites", images, lambda: images, ("dark", "bright")[:classes], (0.5,), (0.5,), 12)
    return worlds.data(origin), Network(nn.Sequential(nn.Flatten()), nn.Linear(64, 2), (0.5,), (0.5,)).double()


def test_negative_is_of_another_class_where_features_point_apart() -> None:
    given, network = opposites()
    method = make(given, network)
    batch = perturbed(method, given)
    u, v = (network.features(x).tolist() for x in (batch.x, batch.aux["negative"]))
    assert max(map(cosine, u, v)) < -0.5
    assert (given.train.y[positions(given, batch.aux["negative"])] == 1 - batch.y).all()


def test_without_another_class_in_the_pool_there_is_no_triplet() -> None:
    given, network = opposites(classes=1)
    method = make(given, network, margin=3.0)
    batch = perturbed(method, given)
    assert not batch.aux["mined"].any() and method.loss(batch).terms["triplet"] == 0
    batch.aux["mined"][:3] = True
    assert method.loss(batch).terms["triplet"] == pytest.approx(2 * 3 * 3 / 12, abs=0.05)


def test_positive_is_any_other_image_of_the_class() -> None:
    given = worlds.data()
    method = make(given)
    seen: dict[int, set[int]] = {}
    for step in range(25 * given.steps):
        method.clock.epoch, method.clock.step = divmod(step, given.steps)
        batch = given.batch(*divmod(step, given.steps))
        found = positions(given, method._another(batch))
        assert torch.equal(given.train.floats(found, torch.float64), method._another(batch))
        assert torch.equal(given.train.y[found], batch.y) and (found != batch.index).all()
        for i, j in zip(batch.index.tolist(), found.tolist(), strict=True):
            seen.setdefault(i, set()).add(j)
    # 25 draws among the 15 others of a class of 16: 12.3 different ones on average
    assert 11.5 < reference.mean([float(len(others)) for others in seen.values()]) < 13
    assert set.union(*seen.values()) == set(range(48))


def test_the_only_image_of_its_class_is_its_own_positive() -> None:
    pixels = torch.randint(0, 256, (25, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = Images(pixels, torch.tensor([0] * 12 + [1] + [2] * 12))
    given = worlds.data(Source("lonely", images, lambda: images, ("0", "1", "2"), (0.5,), (0.5,), 0), batch_size=25)
    method, batch = make(given), given.batch(0, 0)
    found = positions(given, method._another(batch))
    assert torch.equal(found == batch.index, batch.y == 1)


def test_positives_and_pool_are_augmented_and_the_own_image_is_noisy() -> None:
    given = worlds.data(augment=PadCropFlip(1, True))
    method = make(given)
    batch = perturbed(method, given)
    own, other = batch.aux["positives"]
    for images in (other, batch.aux["negative"]):
        assert not torch.equal(given.train.floats(positions(given, images), torch.float64), images)
    noise = own - batch.x
    assert noise.abs().max() <= 0.1 and own.min() >= 0 and own.max() <= 1
    assert noise.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.15)
    assert not torch.equal(own, batch.x_adv) and not torch.equal(noise, perturbed(method, given, 1).aux["positives"][0])


@pytest.mark.parametrize("own", [True, False])
def test_statistics_see_every_image_once_and_the_cost_is_the_floor(own: bool) -> None:
    given, network = worlds.data(), worlds.cnn(norm="batch")
    method = make(given, network, own_triplet=own, negatives=3)
    seen: list[int] = []
    hook = network.stages[0].register_forward_hook(lambda *args: seen.append(len(args[2])))
    batch = perturbed(method, given)
    searched, passes = sum(seen) / 12, len(seen)
    method.loss(batch)
    hook.remove()
    updated = sum(seen) / 12 - searched
    assert searched == 3 + 1 + 3 and max(seen) == 12 and len(seen) - passes == updated == 3 + own
    assert method.forward_cost(3) == 2 * 3 + (1 + 3) + 3 * updated
    counts = {value.item() for name, value in method.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {3 + own}


def test_contract() -> None:
    given = worlds.data()
    batch = worlds.check_pure(make(given), given.batch(0, 0))
    assert worlds.legal(worlds.attack(), batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given), given)
    assert all(name.startswith("model.") for name in make(given).state_dict()), "tables are a function of the data"


def test_what_it_cannot_use_is_refused() -> None:
    for model in (nn.Linear(2, 2), Ensemble([worlds.cnn(), worlds.cnn()])):
        with pytest.raises(ConfigError, match=r"model: (Linear|Ensemble)"):
            Tla(model, worlds.attack())
