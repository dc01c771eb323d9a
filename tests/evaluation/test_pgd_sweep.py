"""The sweep: closed forms, prefixes, restarts, batching, and a network that is left as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atbench.data import Images
from atbench.errors import NumericalError
from atbench.evaluation import EvalModel, PGDConfig, Plan, broken_at, evaluate_model, robust_after, summarize
from atbench.interval import wilson
from tests.support.flat import Flat, images


def margins(network: Flat, given: Images, eps: float, p: float) -> Tensor:
    """min over wrong classes of z_y − z_k − ε·‖w_y − w_k‖_q: positive where no perturbation of the ball breaks."""
    x = given.x.double().flatten(1) / 255
    weight = network.linear.weight / torch.sqrt(network.norm.running_var + network.norm.eps)
    logits = network.eval()(given.x.double() / 255)
    dual = 1.0 if p == float("inf") else 2.0
    worst = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for k in range(3):
        gap = logits.gather(1, given.y[:, None]).squeeze(1) - logits[:, k]
        reach = eps * (weight[given.y] - weight[k]).norm(p=dual, dim=1)
        worst = torch.where(given.y == k, worst, torch.minimum(worst, gap - reach))
    return worst.detach()


@pytest.mark.parametrize(("norm", "p", "eps"), [("linf", float("inf"), 0.02), ("l2", 2.0, 0.06)])
def test_breaks_exactly_what_the_closed_form_says(norm: str, p: float, eps: float) -> None:
    network = Flat()
    given = images(network)
    threat = PGDConfig(norm, eps, eps / 4, 40, objective="margin", restarts=3)
    eval_model = EvalModel(network, 16)
    survived = robust_after(broken_at(eval_model, given, threat, eval_model.correct(given)), 40)
    margin = margins(network, given, eps, p)
    sure = margin.abs() > 1e-3
    assert torch.equal(survived[sure], margin[sure] > 0)
    assert 0 < int(survived.sum()) < int(eval_model.correct(given).sum())


def test_prefixes_are_the_shorter_attacks() -> None:
    network = Flat()
    given, threat = images(network), PGDConfig("linf", 0.02, 0.004, 12)
    eval_model = EvalModel(network, 32)
    whole = broken_at(eval_model, given, threat, eval_model.correct(given))
    for k in (1, 3, 7):
        short = broken_at(eval_model, given, replace(threat, steps=k), eval_model.correct(given))
        assert torch.equal(robust_after(short, k), robust_after(whole, k))


def test_restarts_are_the_worst_of_single_runs_at_every_k() -> None:
    network = Flat()
    given, threat = images(network), PGDConfig("linf", 0.02, 0.003, 8)
    eval_model = EvalModel(network, 32)
    alive = eval_model.correct(given)
    both = broken_at(eval_model, given, replace(threat, restarts=2), alive)
    first = broken_at(eval_model, given, threat, alive)
    for k in range(1, 9):
        assert (robust_after(both, k) <= robust_after(first, k)).all()
    assert (robust_after(both, 8).sum() < robust_after(first, 8).sum()) or (both != first).any()


@pytest.mark.parametrize("size", [1, 7, 90, 1000])
def test_outcomes_do_not_depend_on_the_batch_size(size: int) -> None:
    network = Flat()
    given, threat = images(network), PGDConfig("linf", 0.02, 0.004, 6, restarts=2)
    expected = broken_at(EvalModel(network, 64), given, threat, EvalModel(network, 64).correct(given))
    eval_model = EvalModel(network, size)
    assert torch.equal(broken_at(eval_model, given, threat, eval_model.correct(given)), expected)


def test_processes_share_the_work() -> None:
    network = Flat()
    given, threat = images(network), PGDConfig("linf", 0.02, 0.004, 6)
    expected = broken_at(EvalModel(network, 16), given, threat, EvalModel(network, 16).correct(given))
    parts: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        parts.append(tensor.clone())
        return tensor

    alive = EvalModel(network, 16).correct(given)
    for rank in range(3):
        broken_at(EvalModel(network, 16, rank, 3, keep), given, threat, alive)
    found = (7 - torch.stack(parts).sum(dim=0)) * alive
    assert torch.equal(torch.where(found == 7, -1, found).to(torch.int16), expected)


def test_a_record_is_monotone_and_exact_at_zero_and_one() -> None:
    network = Flat()
    given = images(network)
    threat = PGDConfig("linf", 0.02, 0.005, 10)
    plan = Plan(threat, steps=[1, 2, 5, 10], eps_grid=[0, 0.5, 1, 2, 50], eps_steps=10)
    found = evaluate_model(EvalModel(network, 32), given, plan)
    record, outcomes = summarize(found), found.outcomes
    by_k = [record["clean"]["accuracy"], *(step["accuracy"] for step in record["steps"])]
    by_eps = [entry["accuracy"] for entry in record["eps"]]
    assert by_k == sorted(by_k, reverse=True) and by_eps == sorted(by_eps, reverse=True)
    assert (outcomes["eps_robust"][0] == outcomes["clean"]).all() and record["eps"][-1]["eps"] == 1.0
    assert by_eps[-1] == 0, "ε = 1 allows every image"
    assert abs(outcomes["shown_adv"] - outcomes["shown_x"]).max() <= 0.02 + 1e-6


def test_the_network_is_left_as_it_was() -> None:
    network = Flat().train()
    network.linear.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = images(Flat())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    eval_model = EvalModel(network, 32)
    broken_at(eval_model, given, PGDConfig("linf", 0.02, 0.005, 3), eval_model.correct(given))
    assert torch.equal(torch.rand(3), expected), "the global random state"
    assert network.training and network.norm.training and network.dropout.training
    assert not network.linear.weight.requires_grad and network.linear.bias.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.linear.bias.grad is None


def test_weights_that_are_no_numbers_get_no_accuracy() -> None:
    network = Flat()
    given = images(network)
    with torch.no_grad():
        network.linear.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="logits"):
        EvalModel(network, 32).correct(given)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(right: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
