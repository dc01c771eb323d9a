"""Kim et al.: the nearest misclassified point in closed form, against a plain loop, and who is looked at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.data import Batch
from atbench.methods.kim_interval import KimInterval
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.125, "start": "uniform"}


def make(checkpoints: int = 4, norm: str = "none", trained: int = 12) -> tuple[KimInterval, Batch]:
    """Trained a little on clean images, so that some examples are fooled on the way and some are not; three examples
    have a wrong label.
    """
    given, method = worlds.data(), KimInterval(worlds.cnn(norm=norm), worlds.attack(**ONE_STEP), checkpoints)
    optimizer = torch.optim.SGD(method.model.parameters(), lr=0.3)
    for position in range(trained):
        batch = given.batch(*divmod(position, given.steps))
        F.cross_entropy(method.model(batch.x), batch.y).backward()
        optimizer.step()
        optimizer.zero_grad()
    worlds.start(method, given)
    batch = given.batch(0, 0)
    batch.y[:3] = (batch.y[:3] + 1) % 3
    return method, batch


def full_step(method: KimInterval, batch: Batch) -> torch.Tensor:
    method.model.eval()
    plain = PgdAt(method.model, method.attack)
    plain.clock = method.clock
    delta = plain.perturb(batch).x_adv - batch.x
    method.model.train()
    return delta


def expected_k(method: KimInterval, batch: Batch, c: int) -> list[int]:
    """Image by image: 0 where the noisy start is wrong, else the first point that is, else c."""
    delta, found = full_step(method, batch), []
    noisy = (batch.x + 0.1 * method.rng().uniform(batch.x)).clamp(0, 1)
    method.model.eval()
    for i, y in enumerate(batch.y.tolist()):
        points = [noisy[i], *(batch.x[i] + k * delta[i] / c for k in range(1, c))]
        wrong = [int(method.model(point[None]).argmax()) != y for point in points]
        found.append(wrong.index(True) if True in wrong else c)
    method.model.train()
    return found


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_nearest_misclassified_point_is_trained_on(norm: str) -> None:
    method, batch = make(norm=norm)
    wanted = expected_k(method, batch, 4)
    assert 0 in wanted and 4 in wanted and set(wanted) & {1, 2, 3}, f"every case should be there: {wanted}"
    delta, found = full_step(method, batch), method.perturb(batch)
    assert (4 * found.aux["share"]).round().long().tolist() == wanted
    for i, k in enumerate(wanted):
        torch.testing.assert_close(found.x_adv[i], batch.x[i] + k / 4 * delta[i], rtol=0, atol=1e-15)
    loss = method.loss(found)
    logits = method.model(found.x_adv)
    assert loss.total.item() == pytest.approx(reference.mean(reference.ce(logits, batch.y)), abs=1e-12)
    assert loss.terms["share"].item() == pytest.approx(sum(wanted) / 4 / len(wanted))


def test_on_a_linear_model_it_is_the_first_point_of_the_grid_past_the_boundary() -> None:
    """k* = ceil(c·t), t = margin(x) / (margin(x) − margin(x + δ)), where x and the noisy start are right."""
    given = worlds.data(worlds.source(classes=2))
    attack = worlds.attack(eps=0.02, steps=1, step_size=0.025)
    method = KimInterval(worlds.linear(classes=2), attack, 5)
    worlds.start(method, given)
    seen = set()
    for step in range(given.steps):
        batch = given.batch(0, step)
        delta = full_step(method, batch)
        found = (5 * method.perturb(batch).aux["share"]).round().long().tolist()

        def margins(x: torch.Tensor, y: torch.Tensor = batch.y) -> list[float]:
            logits = method.model(x)
            return (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).flatten().tolist()

        noisy = margins((batch.x + 0.02 * method.rng().uniform(batch.x)).clamp(0, 1))
        for k, start, near, far in zip(found, noisy, margins(batch.x), margins(batch.x + delta), strict=True):
            if start < 0:
                assert k == 0
            elif near > 0:
                assert k == (min(5, math.ceil(5 * near / (near - far))) if far < 0 else 5)
            seen.add(k)
    assert 0 in seen and 5 in seen and len(seen) > 2


def test_one_part_is_fgsm_rs_but_for_what_the_noise_fools() -> None:
    method, batch = make(checkpoints=1)
    found, delta = method.perturb(batch), full_step(method, batch)
    right = torch.tensor(expected_k(method, batch, 1)) == 1
    assert right.any() and not right.all()
    torch.testing.assert_close(found.x_adv[right], (batch.x + delta)[right], rtol=0, atol=1e-15)
    assert torch.equal(found.x_adv[~right], batch.x[~right])


def test_only_what_is_still_right_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make()
    wanted, sizes, inner = expected_k(method, batch, 4), [], method.model.forward

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        assert not method.model.training
        return inner(x)

    monkeypatch.setattr(method.model, "forward", counted)
    method.perturb(batch)
    left = [sum(k >= least for k in wanted) for least in (1, 2, 3)]
    assert sizes == [len(batch), *(count for count in left if count)]


def test_statistics_see_the_update_alone() -> None:
    method, batch = make(norm="batch")
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [int(norm.num_batches_tracked) for norm in norms]
    method.loss(method.perturb(batch))
    assert [int(norm.num_batches_tracked) for norm in norms] == [count + 1 for count in before]


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda given: KimInterval(worlds.cnn(), worlds.attack(**ONE_STEP)))
