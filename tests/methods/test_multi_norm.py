"""AVG, MAX and their relatives: each norm's own search on the margin, and what is trained on of what they find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.attacks import L2, GradientAttack, Objective, margin
from atbench.bench.steps import operations as cost
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods import Method
from atbench.methods.multi_norm import FreeL2, MultiNorm
from atbench.methods.pgd_at import PgdAt
from atbench.training.cost import Count
from tests.support import reference, worlds
from tests.support.configs import resolved

RADII = {"linf": 0.1, "l2": 0.6, "l1": 2.0}
REACH = {"linf": 1.2, "l2": 2.0, "l1": 1.5}
STEPS = {"linf": 3, "l2": 4, "l1": 2}


def make(
    given: TrainData | None = None, rule: str = "avg", norms: tuple[str, ...] = tuple(RADII), **options: Any
) -> MultiNorm:
    radii = {norm: RADII[norm] for norm in norms}
    settings = {"rel_path_length": REACH, "steps": STEPS, "rule": rule, **options}
    method = MultiNorm(worlds.cnn(norm=settings.pop("layer", "none")), worlds.attack(), radii, **settings)
    worlds.start(method, given or worlds.data())
    return method


def plain(norm: str) -> GradientAttack:
    """PGD of one norm, made by hand."""
    size = REACH[norm] * RADII[norm] / STEPS[norm]
    search = GradientAttack(norm, RADII[norm], STEPS[norm], size, "uniform")
    if norm == "l2":
        search.ball = FreeL2()
    return search


def alone(method: Method, batch: Batch, norm: str) -> Tensor:
    return plain(norm)(Objective(method.model, margin, batch.y), batch.x, rng=method.rng(norm))


def test_avg_is_the_mean_of_the_losses_on_each_norm_s_images() -> None:
    method = make()
    batch = worlds.check_pure(method, worlds.data().batch(0, 0))
    found = [alone(method, batch, norm) for norm in RADII]
    assert torch.equal(batch.x_adv, torch.cat(found))
    each = [reference.mean(reference.ce(method.model(x), batch.y)) for x in found]
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(reference.mean(each), abs=1e-12) and len(set(each)) == 3
    right = [float((method.model(x).argmax(1) == batch.y).float().mean()) for x in found]
    assert (loss.logits.argmax(1).view(-1, len(batch)) == batch.y).double().mean().item() == pytest.approx(
        sum(right) / 3
    )
    for search, x in zip(method.searches.values(), found, strict=True):
        assert worlds.legal(search, batch.x, x, search.eps)


def test_max_takes_the_image_of_largest_cross_entropy() -> None:
    method = make(rule="max")
    worlds.steps(method, worlds.data(), 10)
    batch = worlds.check_pure(method, worlds.data().batch(0, 1))
    found = [alone(method, batch, norm) for norm in RADII]
    losses = [reference.ce(method.model(x), batch.y) for x in found]
    choice = [max(range(3), key=lambda k, i=i: losses[k][i]) for i in range(len(batch))]
    by_margin = torch.stack([margin(method.model(x), batch.y) for x in found]).argmax(0).tolist()
    assert len(set(choice)) > 1 and choice != by_margin, "a choice by the margin would be another"
    for i, k in enumerate(choice):
        assert torch.equal(batch.x_adv[i], found[k][i])
    total = method.loss(batch).total.item()
    assert total == pytest.approx(reference.mean([losses[k][i] for i, k in enumerate(choice)]), abs=1e-12)
    assert all(total > reference.mean(each) for each in losses)


class MarginPgd(PgdAt):
    """PGD-AT whose attack maximises the margin."""

    def perturb(self, batch: Batch) -> Batch:
        return batch.with_adv(self.run_attack(Objective(self.model, margin, batch.y), batch.x, stream=self.attack.norm))


@pytest.mark.parametrize("rule", ["avg", "max", "alternate", "sequential"])
@pytest.mark.parametrize("norm", list(RADII))
def test_one_norm_alone_is_pgd_at_with_the_margin_to_the_bit(norm: str, rule: str) -> None:
    given = worlds.data()
    ours, theirs = make(given, rule, (norm,)), MarginPgd(worlds.cnn(), plain(norm))
    assert worlds.steps(ours, given, 4) == worlds.steps(theirs, given, 4)
    assert worlds.same(worlds.snapshot(ours), worlds.snapshot(theirs))


def test_alternate_goes_round_the_norms_from_step_to_step() -> None:
    given = worlds.data()
    method = make(given, "alternate")
    assert given.steps == 4
    for position in range(9):  # over the ends of two epochs, whose length is no multiple of three
        method.clock.epoch, method.clock.step = divmod(position, given.steps)
        batch = method.perturb(given.batch(0, 0))
        assert torch.equal(batch.x_adv, alone(method, batch, list(RADII)[position % 3]))


def test_sequential_attacks_the_weights_that_the_norm_before_has_left() -> None:
    given = worlds.data()
    method, by_hand = make(given, "sequential"), make(given)
    worlds.steps(method, given, 1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    batch = given.batch(0, 0)
    for number, norm in enumerate(RADII):
        by_hand.clock.round = number
        by_hand.risk(by_hand.model(alone(by_hand, batch, norm)), batch.y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(by_hand))


def test_searches_and_choice_are_in_eval_mode() -> None:
    method = make(rule="max", layer="batch")
    method.model.train()
    batch, before = worlds.data().batch(0, 0), worlds.snapshot(method)
    found = method.perturb(batch)
    assert worlds.same(before, worlds.snapshot(method))
    method.model.eval()
    assert torch.equal(found.x_adv, method.perturb(batch).x_adv)


def test_l2_steps_are_spent_on_pixels_that_can_move() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand((3, 1, 4, 4), generator=rng, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    grad = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    stuck = ((x == 0) & (grad < 0)) | ((x == 1) & (grad > 0))
    delta = FreeL2().ascend(x, grad, torch.tensor(0.3)) - x
    assert bool(stuck.flatten(1).any(1).all()) and bool((delta[stuck] == 0).all())
    torch.testing.assert_close(L2().norm(delta), torch.full((3,), 0.3, dtype=torch.float64))
    free = torch.where(stuck, 0.0, grad)
    torch.testing.assert_close(delta, 0.3 * free / free.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    assert bool((FreeL2().ascend(x, torch.zeros_like(x), torch.tensor(0.3)) == x).all())


def test_warm_up_has_a_third_of_the_radii() -> None:
    given = worlds.data()
    method = make(given, warmup=0.25)
    for epoch, share in ((0, 1 / 3), (1, 1.0)):
        method.clock.epoch = epoch
        batch = method.perturb(given.batch(0, 0))
        for (norm, eps), x_adv in zip(RADII.items(), batch.x_adv.split(len(batch)), strict=True):
            reach = float(method.searches[norm].ball.norm(x_adv - batch.x).max())
            assert 0.9 * share * eps < reach <= share * eps + 1e-12


@pytest.mark.parametrize(
    ("rule", "floor"), [("avg", 18 + 9), ("max", 18 + 3 + 3), ("alternate", 6 + 3), ("sequential", 18 + 9)]
)
def test_cost_is_the_floor(rule: str, floor: int) -> None:
    method = make(rule=rule)
    batch = worlds.data().batch(0, 0)
    with Count() as count, torch.no_grad():
        method.model(batch.x)
    assert method.forward_cost(10) == floor
    assert 0.85 * floor <= cost(method, batch) / count.total <= 1.02 * floor


@pytest.mark.parametrize("rule", ["max", "alternate"])
def test_two_processes_are_one(rule: str) -> None:
    worlds.check_ranks(lambda given: make(given, rule))


@pytest.mark.parametrize("rule", ["alternate", "sequential"])
def test_resume(rule: str) -> None:
    given = worlds.data()
    worlds.check_resume(lambda: make(given, rule), given)


def test_the_paper_s_steps_are_the_authors() -> None:
    for name in ("multi_norm_avg", "multi_norm_max"):
        cfg = resolved(f"experiment=paper/{name}")
        sizes = {n: cfg.method.rel_path_length[n] * eps / cfg.method.steps[n] for n, eps in cfg.method.radii.items()}
        assert dict(cfg.method.radii) == {"linf": 0.3, "l2": 2.0, "l1": 10.0}
        assert sizes == pytest.approx({"linf": 0.01, "l2": 0.1, "l1": 1.0})


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rule": "mean"}, r"method\.rule.*avg, max"), ({"steps": {"linf": 3, "l2": 3}}, r"method\.steps.*nothing of l1")],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)
