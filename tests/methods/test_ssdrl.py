"""SSDRL: the surrogate's maxima and the soft minimum, slowly and in other units; closed forms; limits; BatchNorm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import Objective, margin
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.ssdrl import RobustSurrogate, Ssdrl, transport_cost
from atbench.workflows.environment import run_facts
from atbench.workflows.pgd_configs import selection_attacks
from tests.support import reference, worlds
from tests.support.configs import resolved

HALF = {"labelled": 0.5, "extra": 0.5}
SEARCH: dict[str, Any] = {"start": "zero", "rule": "gradient", "decay": 1.0, "project": False, "step_size": 1.0}


def make(given: TrainData, *options: Any, model: nn.Module | None = None, **changes: Any) -> Ssdrl:
    method = Ssdrl(model or worlds.cnn(), worlds.attack(**{**SEARCH, **changes}), *options)
    method.setup(given)
    worlds.start(method, given)
    return method


def perturbed(*options: Any, model: nn.Module | None = None, **changes: Any) -> tuple[Ssdrl, Batch, Batch]:
    """A method with γ, λ and K, its perturbed batch, and that one's unlabelled part."""
    given = worlds.data(**HALF)
    method = make(given, *options, model=model, **changes)
    batch = method.perturb(given.batch(0, 0))
    assert batch.extra is not None
    return method, batch, batch.extra


def slow_maximum(model: nn.Module, x: Tensor, k: int, gamma: float, alpha: float) -> tuple[Tensor, float, float]:
    """x' of one image, CE and φ there, as the authors have it: in units of z = 2x − 1 in [−1, 1] and their γ."""
    start = 2 * x - 1
    z = start
    for t in range(3):
        z = z.detach().requires_grad_()
        phi = -model((z + 1) / 2).log_softmax(dim=1)[0, k] - gamma * 0.5 * ((z - start) ** 2).sum()
        (grad,) = torch.autograd.grad(phi, z)
        z = (z.detach() + alpha / gamma / (t + 1) * grad).clip(-1, 1)
    x_adv = (z.detach() + 1) / 2
    risk = reference.ce(model(x_adv), torch.tensor([k]))[0]
    return x_adv, risk, risk - gamma * 0.5 * float(((z - start) ** 2).sum())


@pytest.mark.parametrize(
    ("gamma", "lam", "classes", "alpha"), [(0.5, -1.0, None, 1.0), (0.5, 3.0, 2, 0.5), (0.1, -5.0, 2, 1.0)]
)
def test_attack_and_loss_are_those_of_a_slow_reference(
    gamma: float, lam: float, classes: int | None, alpha: float
) -> None:
    method, batch, extra = perturbed(4 * gamma, lam, classes, model=worlds.linear(scale=0.3), step_size=alpha)
    model, total, distance = method.model, 0.0, 0.0
    for i in range(6):
        x, y = batch.x[i : i + 1], int(batch.y[i])
        x_adv, risk, _ = slow_maximum(model, x, y, gamma, alpha)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-11)
        total, distance = total + risk / 6, distance + 0.5 * float(((x_adv - x) ** 2).sum()) / 6
    assert (batch.x_adv - batch.x).abs().max() > method.attack.eps, "no ball bounds it"
    for i in range(6):
        x = extra.x[i : i + 1]
        logits = model(x)[0].tolist()
        order = sorted(range(3), key=logits.__getitem__, reverse=lam < 0)[: classes or 3]
        found = [slow_maximum(model, x, k, gamma, alpha) for k in order]
        weights = torch.tensor([lam * phi for _, _, phi in found], dtype=torch.float64).softmax(dim=0).tolist()
        total += sum(w * risk for w, (_, risk, _) in zip(weights, found, strict=True)) / 6
        tried = batch.aux["candidates"][:, i].tolist()
        assert set(tried) == set(order)
        for place, k in enumerate(tried):
            ours = batch.aux["pool_adv"][place, i]
            torch.testing.assert_close(ours, found[order.index(k)][0][0], rtol=0, atol=1e-11)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(total, rel=1e-10)
    assert loss.terms["cost"].item() == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("lam", [-2.0, 2.0])
def test_its_gradient_is_that_of_the_soft_minimum(lam: float) -> None:
    """∇ Σ_k sg(w_k) · CE_k = ∇ 1/λ · logsumexp_k(λ · φ_k) at images that are held fixed."""
    method, batch, extra = perturbed(1.0, lam)
    parameters = list(method.model.parameters())
    risks = [
        nn.functional.cross_entropy(method.model(x_adv), k, reduction="none")
        for x_adv, k in zip(batch.aux["pool_adv"], batch.aux["candidates"], strict=True)
    ]
    costs = [0.5 * (x_adv - extra.x).pow(2).sum(dim=(1, 2, 3)) for x_adv in batch.aux["pool_adv"]]
    phi = torch.stack([risk - 1.0 * cost for risk, cost in zip(risks, costs, strict=True)])
    labelled = nn.functional.cross_entropy(method.model(batch.x_adv), batch.y)
    wanted = torch.autograd.grad(labelled + ((lam * phi).logsumexp(dim=0) / lam).mean(), parameters)
    for ours, theirs in zip(torch.autograd.grad(method.loss(batch).total, parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 4])
def test_of_a_linear_loss_the_first_step_is_the_maximum_and_later_ones_stay(steps: int) -> None:
    """argmax ⟨w, x'⟩ − γ/2 · ‖x' − x‖² = x + w/γ."""
    model, (x, _) = worlds.linear(classes=2, scale=0.1), worlds.middle()
    y = torch.zeros(len(x), dtype=torch.long)
    method = Ssdrl(model, worlds.attack(**{**SEARCH, "steps": steps}), 3.0)
    objective = RobustSurrogate(model, y, x, method.gamma)
    objective.value = margin
    w = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 1, 8, 8)
    found = method.run_attack(objective, x, step_size=1.0 / method.gamma)
    torch.testing.assert_close(found, x + w / 3.0, rtol=0, atol=1e-14)


def test_the_surrogate_pays_for_the_rows_that_are_left() -> None:
    model, (x, y) = worlds.linear(), worlds.middle()
    x_adv, rows = (x + 0.1).clamp(0, 1), torch.tensor([5, 0, 2])
    value, _ = RobustSurrogate(model, y, x, 2.0)(x_adv, None)
    part, _ = RobustSurrogate(model, y, x, 2.0)(x_adv[rows], rows)
    plain, _ = Objective(model, nn.CrossEntropyLoss(reduction="none"), y)(x_adv)
    torch.testing.assert_close(part, value[rows], rtol=0, atol=1e-13)
    torch.testing.assert_close(value, plain - 2.0 * 64 * 0.005, rtol=0, atol=1e-12)
    torch.testing.assert_close(transport_cost(x_adv, x), torch.full((8,), 0.32, dtype=torch.float64))


def test_an_infinite_price_leaves_the_images_where_they_are() -> None:
    _, batch, extra = perturbed(1e14)
    torch.testing.assert_close(batch.x_adv, batch.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.aux["pool_adv"], extra.x.expand(3, -1, -1, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, -1e9, 1e9])
def test_limits_of_lambda(lam: float) -> None:
    """0: all classes weigh alike; −∞: the class of the least φ alone; +∞: that of the greatest."""
    method, batch, extra = perturbed(1.0, lam)
    pairs = list(zip(batch.aux["pool_adv"], batch.aux["candidates"], strict=True))
    risks = torch.stack([method.risk(method.model(x_adv), k) for x_adv, k in pairs])
    phi = risks - torch.stack([transport_cost(x_adv, extra.x) for x_adv, _ in pairs])
    chosen = phi.argmin(dim=0) if lam < 0 else phi.argmax(dim=0)
    wanted = risks.mean(dim=0) if lam == 0 else risks.gather(0, chosen[None])[0]
    torch.testing.assert_close(method.loss(batch).terms["unlabelled"], wanted.mean(), rtol=0, atol=1e-12)


def test_one_class_is_training_on_the_networks_own_predictions() -> None:
    method, batch, extra = perturbed(1.0, -1.0, 1, model=worlds.linear(scale=0.3))
    predicted = method.model(extra.x).argmax(dim=1)
    assert torch.equal(batch.aux["candidates"], predicted[None]) and len(predicted.unique()) > 1
    x_adv = method._maximise(extra.x, predicted)
    assert torch.equal(batch.aux["pool_adv"][0], x_adv)
    wanted = method.risk(method.model(x_adv), predicted).mean()
    assert torch.equal(method.loss(batch).terms["unlabelled"], wanted.detach())


def test_without_a_pool_it_is_distributionally_robust_learning() -> None:
    given = worlds.data(labelled=0.5, extra=0.0)
    method = make(given, 1.0)
    batch = method.perturb(given.batch(0, 0))
    loss, wanted = method.loss(batch), method.risk(method.model(batch.x_adv), batch.y).mean()
    assert torch.equal(loss.total, wanted) and set(loss.terms) == {"labelled", "cost"}


@pytest.mark.parametrize("classes", [None, 2])
def test_one_forward_of_clean_labelled_images_moves_the_statistics(classes: int | None) -> None:
    """With k = 3: 3 forwards of the labelled images; ordering, 3 a class of the others; then clean, and 1 + K."""
    model = worlds.cnn(norm="batch")
    given = worlds.data(labelled=0.5, extra=4 / 12)
    method, layer = make(given, 1.0, -1.0, classes, model=model, bn="batch"), model.stages[1][0]
    seen: list[tuple[int, bool, bool]] = []
    model.register_forward_pre_hook(
        lambda net, inputs: seen.append((len(inputs[0]), net.training, layer.track_running_stats))
    )
    tried = classes or 3
    method.loss(method.perturb(given.batch(0, 0)))
    searched = [(8, True, False)] * 3 + [(4, True, False)] * (3 * tried + (classes is not None))
    assert seen == [*searched, (8, True, True), (8, True, False), *[(4, True, False)] * tried]
    assert int(layer.num_batches_tracked) == 1


def test_its_steps_have_no_length_to_warn_about() -> None:
    assert make(worlds.data(**HALF)).fixed_steps() == {}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.lam: -inf — .*classes=1"):
        make(worlds.data(**HALF), 1.0, float("-inf"))
    with pytest.raises(ConfigError, match=r"train\.extra_data\.labelled.*unlabelled pool"):
        Ssdrl(worlds.cnn(), worlds.attack(**SEARCH)).setup(worlds.data())


@pytest.mark.parametrize("classes", [None, 1])
def test_contract(classes: int | None) -> None:
    given = worlds.data(**HALF)
    batch = worlds.check_pure(make(given, 1.0, -1.0, classes), given.batch(0, 0))
    for found in (batch.x_adv, batch.aux["pool_adv"]):
        assert found.min() >= 0 and found.max() <= 1
    worlds.check_resume(lambda: make(given, 1.0, -1.0, classes), given)
    worlds.check_ranks(lambda share: make(share, 1.0, -1.0, classes), **HALF)


def test_it_is_validated_in_the_threat_of_the_data_set_and_says_that_its_search_is_not_bound_by_it() -> None:
    ours, other = resolved("method=ssdrl"), resolved("method=pgd_at")
    assert selection_attacks(ours) == selection_attacks(other)
    about = {"classes": 10, "shape": (1, 8, 8), "train": 6, "validation": 2, "generated": 0, "pool": 6, "steps": 1}
    about |= {"world": 1, "parameters": 1, "device": "cpu"}
    threats = [dict(run_facts(cfg, about, Path()))["threat"] for cfg in (ours, other)]
    assert ["no bound of the search" in line for line in threats] == [True, False]
