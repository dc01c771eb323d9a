"""ARD: the teacher's answer at the clean image, the student's at the attacked one, and a clean pass for BatchNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.data import Batch
from atbench.methods.ard import Ard
from atbench.methods.pgd_at import PgdAt
from tests.support import pupils, reference, worlds
from tests.support.configs import resolved


def make(**options: Any) -> tuple[Ard, Batch]:
    return pupils.make(Ard, attack={"bn": "train", "clip_start": False}, **options)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_loss_is_the_formula(alpha: float) -> None:
    method, batch = make(alpha=alpha, temperature=5.0, divisor=3.0)
    batch = method.perturb(batch)
    taught, adversarial = pupils.teacher()(batch.x), method.model(batch.x_adv)
    distance = 25 / 3 * reference.mean(reference.kl(taught / 5, adversarial / 5))
    ce = reference.mean(reference.ce(method.model(batch.x), batch.y))
    assert method.loss(batch).total.item() == pytest.approx(alpha * distance + (1 - alpha) * ce, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_attack_is_pgd_in_train_mode_and_knows_no_teacher() -> None:
    method, batch = make(norm="batch")
    plain = PgdAt(worlds.cnn(norm="batch"), method.attack)
    worlds.start(plain, worlds.data())
    assert torch.equal(method.perturb(batch).x_adv, plain.perturb(batch).x_adv)
    assert worlds.same(method.model.state_dict(), plain.model.state_dict()), "both moved statistics alike"
    attack = resolved("method=ard").attack
    assert attack.bn == "train" and attack.clip_start is False and attack.start == "uniform"


def test_without_distillation_the_loss_is_that_of_clean_images_to_the_bit() -> None:
    method, batch = make(alpha=0.0)
    batch = method.perturb(batch)
    expected = torch.nn.functional.cross_entropy(method.model(batch.x), batch.y)
    assert torch.equal(method.loss(batch).total, expected)


def test_statistics_see_the_attacked_batch_and_then_the_clean_one() -> None:
    """Also where the clean one has no weight in the loss, and then it has no part in the gradient."""
    method, batch = make(norm="batch")
    batch = method.perturb(batch)
    copy = worlds.cnn(norm="batch").train()
    copy.load_state_dict(method.model.state_dict())
    method.loss(batch).total.backward()
    copy(batch.x_adv), copy(batch.x)
    assert worlds.same(method.model.state_dict(), copy.state_dict())
    with_adv_alone = torch.autograd.grad(
        900 / 10 * torch.nn.functional.kl_div(
            (copy(batch.x_adv) / 30).log_softmax(dim=1),
            (pupils.teacher(norm="batch")(batch.x) / 30).softmax(dim=1),
            reduction="batchmean",
        ),
        list(copy.parameters()),
    )  # fmt: skip
    for parameter, grad in zip(method.model.parameters(), with_adv_alone, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-13)
