"""KD+SWA: three terms on the attacked image, two frozen teachers, and the average that comes with the method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, TrainData
from atbench.methods.kd_swa import KdSwa, distillation
from atbench.methods.pgd_at import PgdAt
from atbench.models import Frozen
from tests.support import reference, worlds
from tests.support.configs import resolved


def make(given: TrainData | None = None, norm: str = "none", **options: Any) -> tuple[KdSwa, Batch]:
    given = given or worlds.data()
    method = KdSwa(worlds.cnn(norm=norm), worlds.attack(bn="train"), **options)
    method.setup(given)
    seeds = {"standard": 7, "robust": 8}
    method.load_pretrained({name: Frozen(worlds.cnn(norm=norm, seed=seed)) for name, seed in seeds.items()})
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow(logits: Tensor, teacher: Tensor, temperature: float) -> float:
    """T² · mean of −Σ softmax(t/T) log softmax(z/T)."""
    values = []
    for z, t in zip(logits.tolist(), teacher.tolist(), strict=True):
        log_q = reference.log_softmax([value / temperature for value in z])
        log_p = reference.log_softmax([value / temperature for value in t])
        values.append(-math.fsum(math.exp(p) * q for p, q in zip(log_p, log_q, strict=True)))
    return temperature**2 * reference.mean(values)


def test_loss_is_the_formula_on_what_the_attack_found() -> None:
    method, batch = make(ce=0.3, standard=0.15, robust=0.55, temperature=3.0)
    batch = method.perturb(batch)
    logits = method.model(batch.x_adv)
    ce = reference.mean(reference.ce(logits, batch.y))
    standard = slow(logits, worlds.cnn(seed=7)(batch.x_adv), 3.0)
    robust = slow(logits, worlds.cnn(seed=8)(batch.x_adv), 3.0)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(0.3 * ce + 0.15 * standard + 0.55 * robust, abs=1e-12)
    assert loss.terms["kd_standard"].item() == pytest.approx(standard, abs=1e-12)
    assert loss.terms["kd_robust"].item() == pytest.approx(robust, abs=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_a_student_that_equals_its_teacher_is_not_pulled() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher, other = torch.randn(2, 5, 4, generator=rng, dtype=torch.float64)
    logits = teacher.clone().requires_grad_()
    (grad,) = torch.autograd.grad(distillation(logits, teacher, 2.0).sum(), logits)
    assert grad.abs().max() < 1e-15
    (grad,) = torch.autograd.grad(distillation(logits, other, 2.0).sum(), logits)
    by_hand = 2 * ((teacher / 2).softmax(dim=1) - (other / 2).softmax(dim=1))
    torch.testing.assert_close(grad, by_hand, rtol=0, atol=1e-14)


def test_without_teachers_it_is_pgd_at_to_the_bit_and_trains_none() -> None:
    given = worlds.data()
    method, _ = make(given, norm="batch", ce=1.0, standard=0.0, robust=0.0)
    plain = PgdAt(worlds.cnn(norm="batch"), worlds.attack(bn="train"))
    assert worlds.steps(method, given, 8) == worlds.steps(plain, given, 8)
    assert worlds.same(method.state_dict(), plain.state_dict())
    assert method.pretraining() == {} and method.forward_cost(10) == plain.forward_cost(10)


def test_each_teacher_is_trained_by_its_method_in_a_run_of_its_own() -> None:
    method, _ = make()
    stages = method.pretraining()
    targets = {name: stage.method["_target_"] for name, stage in stages.items()}
    assert targets == {
        "standard": "atbench.methods.standard.Standard",
        "robust": "atbench.methods.pgd_at.PgdAt",
    }
    assert len({0, *(stage.offset for stage in stages.values())}) == 3
    assert all(stage.epochs == 1.0 and stage.overrides == () for stage in stages.values())
    assert list(make(standard=0.0)[0].pretraining()) == ["robust"]


def test_teachers_are_copies_in_eval_mode_that_nothing_moves() -> None:
    given = worlds.data()
    method, batch = make(given, norm="batch")
    assert worlds.same(method.teachers["robust"].network.state_dict(), worlds.cnn(norm="batch", seed=8).state_dict())
    before = worlds.snapshot(method)
    perturbed = method.perturb(batch)
    for name, seed in (("standard", 7), ("robust", 8)):
        expected = worlds.cnn(norm="batch", seed=seed).eval()(perturbed.x_adv)
        torch.testing.assert_close(perturbed.aux["said"][name], expected, rtol=0, atol=1e-12)
        assert not perturbed.aux["said"][name].requires_grad
    worlds.steps(method, given, 4)
    after = worlds.snapshot(method)
    frozen = {name for name in after if name.startswith("teachers")}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    trained = {parameter for module in method.groups().values() for parameter in module.parameters()}
    assert not trained & set(method.teachers.parameters())


def test_the_attack_runs_in_train_mode() -> None:
    """Its passes move the running statistics, so the slow search is done on a copy."""
    method, batch = make(norm="batch")
    copy = worlds.cnn(norm="batch").train()
    x_adv = method.attack.begin(batch.x, 0.1, method.rng())
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(copy(x_adv), batch.y)
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = (x_adv.detach() + 0.04 * grad.sign()).clamp(batch.x - 0.1, batch.x + 0.1).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, x_adv, rtol=0, atol=1e-12)
    assert resolved("method=kd_swa").attack.bn == "train"


@pytest.mark.parametrize(
    ("words", "averages"), [((), ["swa"]), (("~plus.swa",), []), (("~plus.swa", "plus=ema"), ["ema"])]
)
def test_the_average_comes_with_the_method_and_can_be_left_out(words: tuple[str, ...], averages: list[str]) -> None:
    plus = resolved("method=kd_swa", *words).plus
    assert list(plus) == averages
    assert "swa" not in averages or plus.swa.start == 55 / 200


def test_contract() -> None:
    given = worlds.data()
    method, batch = make(given)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: make(given)[0], given)
