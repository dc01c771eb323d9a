"""Attacks as the evaluation judges them, the sweep over k and ε, and records that can be computed again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atbench.attacks import AscentAttack, Attack, GradientAttack, Target, ball
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, ResultCache, evaluate_model, summarize
from atbench.evaluation.attack_result import UNBROKEN
from atbench.evaluation.attack_runner import AttackRunner, legal, round_to_8bit
from atbench.evaluation.pgd_sweep import broken_at
from atbench.evaluation.verify import verify_record
from atbench.runs.seeding import ExampleDraws
from tests.support.flat import Flat, images

THREAT = PGDConfig("linf", 0.02, 0.004, 8)


class Scripted(Attack):
    """Answers with what a function makes of the images."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor], eps: float = 0.02) -> None:
        super().__init__("linf", eps, 1)
        self.answer = answer

    def __call__(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        return self.answer(x, y)

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        raise NotImplementedError


def make_runner(network: Flat) -> AttackRunner:
    given, eval_model = images(network), EvalModel(network, 32)
    return AttackRunner(eval_model, given, eval_model.correct(given), ResultCache(None, {}), 0)


def pgd(steps: int = 20, eps: float = 0.02) -> AscentAttack:
    return AscentAttack(GradientAttack("linf", eps, steps, eps / 4, "uniform", return_point="first"))


@pytest.mark.parametrize(
    "answer",
    [
        lambda x, y: (x + 0.3).clamp(0, 1),
        lambda x, y: torch.full_like(x, torch.nan),
        lambda x, y: x,
        lambda x, y: x - 2.0,
    ],
    ids=["outside the ball", "no numbers", "nothing done", "outside the box"],
)
def test_an_attack_is_not_believed(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    runner = make_runner(Flat())
    result = runner.run_attack("liar", Scripted(answer), {}, runner.clean)
    assert not result.broken.any() and torch.equal(result.tried, runner.clean)
    assert len(result.rows) == len(result.kept["x_adv"]) == 0


def test_what_is_legal_and_wrong_counts_and_is_kept() -> None:
    network = Flat()
    runner = make_runner(network)
    result = runner.run_attack("pgd", pgd(), {}, runner.clean)
    broken = result.broken
    assert 0 < int(broken.sum()) < int(runner.clean.sum()) and not (broken & ~runner.clean).any()
    assert result.rows.tolist() == broken.nonzero().flatten().tolist()
    x = runner.images.floats(broken.nonzero().flatten(), torch.float64)
    x_adv = torch.from_numpy(result.kept["x_adv"]).double()
    assert legal(x, x_adv, "linf", 0.02).all()
    assert (network.eval()(x_adv).argmax(dim=1) != runner.images.y[broken]).all()
    rounded = round_to_8bit(x, x_adv)
    assert np.array_equal(result.kept["eight"], (network(rounded).argmax(dim=1) != runner.images.y[broken]).numpy())
    assert result.gradients > 0 and result.forwards > result.gradients


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_eight_bits_lie_on_the_grid_and_no_farther(norm: str) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, 3, 4, 4), generator=source) / 255
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=source)).clamp(0, 1)
    rounded = round_to_8bit(x, x_adv)
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), atol=1e-4, rtol=0)
    assert (ball(norm).norm(rounded - x) <= ball(norm).norm(x_adv - x) + 1e-5).all()
    assert (rounded - x_adv).abs().max() <= 1 / 255 + 1e-6
    whole = (x + 8 / 255).clamp(0, 1)
    assert torch.allclose(round_to_8bit(x, whole), whole, atol=1e-6), "a step of 8/255 stays one"


def test_the_surface_is_what_separate_searches_find() -> None:
    """Broken at (ε, k): within k steps at ε, or at any smaller ε of the grid."""
    network = Flat()
    runner = make_runner(network)
    multiples = [0.25, 0.5, 1.0, 1.5]
    sweep = runner.run_sweep(THREAT, multiples, 5)
    expected = torch.full((len(runner.images),), UNBROKEN)
    for multiple in multiples:
        steps = 8 if multiple == 1 else 5
        own = replace(THREAT, eps=multiple * 0.02, step_size=multiple * 0.004, steps=steps)
        alone = broken_at(runner.eval_model, runner.images, own, runner.clean).long()
        expected = torch.minimum(expected, torch.where(alone == -1, UNBROKEN, alone))
        assert torch.equal(sweep[multiple].first_broken, expected)
    firsts = torch.stack([radius.first_broken for radius in sweep.values()])
    assert (firsts[1:] <= firsts[:-1]).all() and (firsts[-1] < firsts[0]).any()


def plan(**changes: Any) -> Plan:
    attacks = {"pgd_20": (pgd(), {"steps": 20}), "pgd_40": (pgd(40), {"steps": 40})}
    norms = {"l2": PGDConfig("l2", 0.06, 0.02, 5)}
    return replace(Plan(THREAT, [1, 8], [0, 0.5, 1, 2], 5, attacks=attacks, norms=norms), **changes)


def whole(network: Flat, **changes: Any) -> tuple[EvalModel, EvalResults]:
    eval_model = EvalModel(network, 32)
    return eval_model, evaluate_model(eval_model, images(network), plan(**changes))


@pytest.mark.parametrize("survivors", [True, False])
def test_the_headline_is_the_worst_case_of_all_attacks(survivors: bool) -> None:
    _, result = whole(Flat(), sequential=survivors)
    figures, arrays = summarize(result), result.outcomes
    broken = arrays["broken_at"] > 0
    for name in ("pgd_20", "pgd_40"):
        broken |= arrays[f"broken_{name}"]
    assert np.array_equal(arrays["robust"], arrays["clean"] & ~broken)
    assert figures["robust"]["accuracy"] == arrays["robust"].mean()
    assert figures["robust"]["attacks"] == ["pgd", "pgd_20", "pgd_40"]
    last = figures["attacks"][-1]
    assert last["after"]["accuracy"] == figures["robust"]["accuracy"]
    assert (last["alone"] is None) == survivors
    assert (
        last["tried"] == (arrays["clean"] & (arrays["broken_at"] < 1) & ~arrays["broken_pgd_20"]).sum() or not survivors
    )
    assert figures["robust"]["eight_bit"]["accuracy"] >= figures["robust"]["accuracy"]


def test_what_comes_after_an_attack_that_left_nothing_is_recorded_too() -> None:
    """On survivors of a ball as large as the box there is nothing to do, and nothing was wrong with that."""
    wide = {name: (pgd(eps=1.0), {"eps": 1.0, "steps": 20}) for name in ("first", "second")}
    threat = PGDConfig("linf", 1.0, 0.25, 8)
    _, result = whole(Flat(), threat=threat, sequential=True, attacks=wide)
    figures, arrays = summarize(result), result.outcomes
    assert figures["robust"]["accuracy"] == 0.0
    assert figures["attacks"][-1]["tried"] == 0 and not arrays["broken_second"].any()


def verdicts(
    network: Flat, eval_model: EvalModel, result: EvalResults, spoil: Callable[..., None] = lambda *_: None
) -> list[str]:
    figures, arrays, kept = summarize(result), result.outcomes, result.examples
    figures, kept = copy.deepcopy(figures), copy.deepcopy(kept)
    spoil(figures, kept)
    checks = verify_record(eval_model, images(network), plan(), figures, arrays, kept)
    return [check.name for check in checks if not check.agrees]


def test_every_number_can_be_made_again_from_the_kept_images() -> None:
    network = Flat()
    eval_model, result = whole(network)
    before = eval_model.gradients
    assert verdicts(network, eval_model, result) == []
    assert eval_model.gradients == before, "nothing is searched"


def test_a_number_that_the_images_do_not_bear_out_is_found() -> None:
    network = Flat()
    eval_model, result = whole(network)

    def claim(figures: dict[str, Any], kept: dict[str, Any]) -> None:
        figures["attacks"][0]["alone"]["accuracy"] -= 1 / 90

    def illegal(figures: dict[str, Any], kept: dict[str, Any]) -> None:
        kept["pgd_40.x_adv"] = np.clip(kept["pgd_40.x_adv"] + 0.1, 0, 1)

    def harmless(figures: dict[str, Any], kept: dict[str, Any]) -> None:
        kept["pgd.1.x_adv"] = images(network).floats(torch.from_numpy(kept["pgd.1.rows"])).numpy()

    assert verdicts(network, eval_model, result, claim) == ["attacks.pgd_20.alone.accuracy"]
    assert "attacks.pgd_40.alone.accuracy" in verdicts(network, eval_model, result, illegal)
    assert "steps.1.accuracy" in verdicts(network, eval_model, result, harmless)


def test_figures_are_told_while_the_evaluation_runs() -> None:
    network = Flat()
    told: list[list[str]] = []
    attacks = {"a": (pgd(), {}), "b": (pgd(), {})}
    evaluate_model(
        EvalModel(network, 32),
        images(network),
        Plan(THREAT, [8], [], 5, attacks=attacks),
        on_progress=lambda e: told.append(summarize(e)["robust"]["attacks"]),
    )
    assert told == [["pgd"], ["pgd", "a"], ["pgd", "a", "b"]]


def test_without_a_sweep_only_the_attacks_count() -> None:
    _, result = whole(Flat(), steps=[], eps_grid=[], norms={})
    figures = summarize(result)
    assert figures["steps"] == figures["eps"] == [] and figures["robust"]["attacks"] == ["pgd_20", "pgd_40"]
    assert "broken_at" not in result.outcomes


def test_steps_that_cannot_cross_the_ball_are_warned_about() -> None:
    network = Flat()
    short = AscentAttack(GradientAttack("linf", 0.02, 3, 0.004, return_point="first"))
    attacks = {"short": (short, {"steps": 3, "step_size": 0.004}), "share": (pgd(), {"steps": 2, "rel_step_size": 0.4})}
    _, result = whole(network, attacks=attacks, steps=[4], threat=replace(THREAT, steps=4))
    warned = summarize(result)["warnings"]
    assert [text.partition(":")[0] for text in warned] == ["pgd", "short", "share"]
    assert "3 steps of 0.004 move at most 0.012" in warned[1]
    _, result = whole(network, attacks={"wide": (pgd(), {"steps": 2, "rel_step_size": 2.5})})
    assert "corners only" in summarize(result)["warnings"][-1]
