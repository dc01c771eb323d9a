"""Rejection by confidence: the threshold by brute force, errors by a slow loop, an attack that knows of it, records."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atbench.attacks import Attack, GradientAttack, Objective, State, cross_entropy
from atbench.attacks.gradient.max_confidence import MaxConfidence, _Best
from atbench.errors import ConfigError
from atbench.evaluation import record_files, summarize
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.attack_runner import legal
from atbench.evaluation.rejection import (
    SLACK,
    adversarial_confidence,
    confidence_threshold,
    roc_auc,
    share_figures,
    share_masks,
    softmax_confidence,
)
from atbench.evaluation.verify import verify_record
from atbench.reporting.agreement import record_disagreements
from atbench.reporting.results import read_evaluation
from atbench.runs.seeding import ExampleDraws
from tests.support.flat import Flat, images, rejected, rejecting
from tests.support.targets import Aim
from tests.support.trained import trained

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 37, 100, 150])
def test_the_threshold_is_the_highest_that_keeps_the_share(n: int, kept: float) -> None:
    right = RNG.random(n)
    tau = confidence_threshold(right, kept)
    candidates = [float(c) for c in right if (right >= c).sum() >= kept * n - 1e-9]
    assert tau == pytest.approx(max(candidates) - SLACK, abs=1e-12)
    assert (right >= tau).mean() >= kept - 1e-9


def test_a_threshold_without_a_right_prediction_rejects_nothing() -> None:
    assert confidence_threshold(np.zeros(0), 0.99) == 0.0


def test_confidence_tells_apart_what_single_precision_does_not() -> None:
    logits = np.array([[40.0, 0.0, 0.0], [25.0, 0.0, 0.0], [1.0, 2.0, 3.0]], np.float32)
    first, second, third = softmax_confidence(logits)
    assert second < first <= 1
    assert third == pytest.approx(math.exp(3) / sum(math.exp(z) for z in (1, 2, 3)))


def slow(right: np.ndarray, clean: np.ndarray, adversarial: np.ndarray, tau: float) -> float | None:
    """RErr(τ) one example after the other."""
    errors = counted = 0
    for f_right, c, c_adv in zip(right, clean, adversarial, strict=True):
        wrong_adv = not math.isnan(c_adv) and c_adv >= tau
        errors += max(int(not f_right and c >= tau), int(wrong_adv))
        counted += max(int(c >= tau), int(wrong_adv))
    return errors / counted if counted else None


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 0.9, 1.1])
def test_the_robust_error_is_that_of_a_slow_loop(tau: float) -> None:
    right, clean = RNG.random(200) < 0.8, RNG.random(200)
    adversarial = np.where(RNG.random(200) < 0.3, np.nan, RNG.random(200))
    found = {name: share_figures(*pair) for name, pair in share_masks(right, clean, adversarial, tau).items()}
    assert found["robust_error"]["share"] == slow(right, clean, adversarial, tau)
    if tau <= 1:
        accepted = clean >= tau
        assert found["tpr"]["share"] == accepted[right].mean() and found["fpr"]["share"] == accepted[~right].mean()
        assert found["error"]["share"] == (~right)[accepted].mean() and found["error"]["n"] == accepted.sum()
        broken = right & ~np.isnan(adversarial)
        assert found["adversarial"]["share"] == (adversarial[broken] >= tau).mean()
    low, high = found["robust_error"]["low"], found["robust_error"]["high"]
    assert tau > 1 or low < found["robust_error"]["share"] < high


def test_where_everything_is_rejected_there_is_no_error_to_speak_of() -> None:
    found = share_masks(np.ones(5, bool), np.full(5, 0.4), np.full(5, 0.5), 0.9)
    assert (
        share_figures(*found["robust_error"])
        == share_figures(*found["error"])
        == {"share": None, "low": None, "high": None, "n": 0}
    )
    assert share_figures(*found["tpr"])["share"] == 0.0


def test_the_area_is_the_share_of_ordered_pairs() -> None:
    positive, negative = np.round(RNG.random(40), 1), np.round(0.8 * RNG.random(30), 1)
    pairs = [(p > q) + 0.5 * (p == q) for p in positive for q in negative]
    assert roc_auc(positive, negative) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc_auc(positive, negative[:0]) is None and roc_auc(positive[:0], negative) is None


# The attack.


def answers(attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    network, _, _ = trained()
    return attack(Aim(network), x, y, ExampleDraws(0, "a", index=torch.arange(len(x))))


def sure(x_adv: Tensor, y: Tensor) -> Tensor:
    """How sure the trained network is of its answer where that is wrong; 0 where it is right."""
    p = trained()[0](x_adv).softmax(dim=1)
    return torch.where(p.argmax(dim=1) != y, p.amax(dim=1), 0.0)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 1.0), ("l1", 4.0)])
def test_its_wrong_answers_are_surer_than_those_of_cross_entropy(norm: str, eps: float) -> None:
    network, x, y = trained()
    x, y, paths = x[:30], y[:30], list[Tensor]()
    reached = sure(x_adv := answers(MaxConfidence(norm, eps, 25, 2, 0.25), x, y), y)
    assert legal(x, x_adv, norm, eps).all() and (reached > 0).float().mean() > 0.5

    def watch(state: State) -> Tensor:
        paths.append(sure(state.x_adv, y))
        return torch.zeros_like(y, dtype=torch.bool)

    pgd = GradientAttack(norm, eps, 50, eps / 4, "uniform", return_point="best")
    pgd(Objective(network, cross_entropy, y), x, stop=watch, rng=ExampleDraws(0, "b", index=torch.arange(len(x))))
    final, best = paths[20], torch.stack(paths).amax(dim=0)
    assert float(reached.mean()) > float(final.mean()) and float((reached > best - 0.02).float().mean()) > 0.9


def test_it_goes_on_after_the_first_wrong_answer_and_on_images_that_are_wrong() -> None:
    _, x, y = trained()
    x, others = x[:30], (y[:30] + 1) % 10  # the network is wrong on every one of these
    before, short, long = (sure(x_adv, others) for x_adv in (x, *(
        answers(MaxConfidence("linf", 0.1, steps, 1, 0.25), x, others) for steps in (1, 20)
    )))  # fmt: skip
    assert (long > 0).all(), "nothing that was wrong is given up"
    assert (long >= short).all() and (short >= before).all() and (long > before).float().mean() > 0.9


def test_more_starts_are_never_less_sure() -> None:
    _, x, y = trained()
    one, three = (sure(answers(MaxConfidence("linf", 0.15, 10, n, 0.25), x[:30], y[:30]), y[:30]) for n in (1, 3))
    assert (three >= one).all() and (three > one).any()
    with pytest.raises(ConfigError, match=r"attack\.restarts"):
        MaxConfidence("linf", 0.15, 10, 0, 0.25)


def test_a_wrong_answer_comes_before_a_likelier_wrong_class() -> None:
    """p = (0.45, 0.55) against p = (0.40, 0.30, 0.30): the second is an answer, the first none."""

    class Switch(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = (x.flatten(1).sum(dim=1) > 0.5).to(x.dtype)[:, None]
            here, there = torch.tensor([[0.45, 0.55, 1e-6], [0.40, 0.30, 0.30]], dtype=x.dtype).log()
            return here * (1 - moved) + there * moved + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    network, x, y = Switch(), torch.zeros((1, 1, 2, 2)), torch.tensor([1])
    best = _Best(x, y)
    for place in (x, x + 0.25, x):
        logits = network(place)
        value = logits.log_softmax(dim=1).scatter(1, y[:, None], -torch.inf).amax(dim=1)
        best.update(State(0, torch.arange(1), place, value, logits, None))
    assert torch.equal(best.x_adv, x + 0.25) and bool(best.wrong)


# The evaluation.


def test_the_record_is_what_a_slow_reader_makes_of_its_arrays() -> None:
    _, found = rejected()
    content, arrays = summarize(found), found.outcomes
    reject, clean = content["reject"], softmax_confidence(arrays["logits_clean"])
    held = [c for c, ok in zip(clean, arrays["clean"], strict=True) if ok]
    assert reject["threshold"] == confidence_threshold(np.array(held), 0.9) and reject["held_out"]["n"] == len(held)
    assert 0.9 <= reject["held_out"]["share"] == reject["tpr"]["share"] < 1, "the held-out images are the test images"
    assert reject["robust_error"]["share"] == slow(
        arrays["clean"], clean, arrays["confidence_adversarial"], reject["threshold"]
    )
    assert 0 < reject["robust_error"]["share"] < reject["without"]["robust_error"]["share"]
    assert 0 < reject["auc"] < 1 and reject["forwards"] > reject["gradients"] > 0


def test_without_a_threshold_it_is_the_worst_case_of_the_attack() -> None:
    _, found = rejected(share=1.0, steps=[])
    content = summarize(found)
    assert content["reject"]["without"]["robust_error"]["share"] == pytest.approx(1 - content["robust"]["accuracy"])
    assert content["reject"]["without"]["error"]["share"] == pytest.approx(1 - content["clean"]["accuracy"])
    assert content["reject"]["tpr"]["share"] == 1.0
    assert content["attacks"][0]["name"] == "confident" == content["robust"]["attacks"][0]


def test_wrong_images_are_attacked_too() -> None:
    _, found = rejected()
    wrong = np.flatnonzero(~found.clean)
    assert found.examples["mistaken.rows"].tolist() == wrong.tolist() and len(wrong) >= 10
    arrays = found.outcomes
    surer = arrays["confidence_adversarial"][wrong] - softmax_confidence(arrays["logits_clean"])[wrong]
    assert (surer >= -1e-6).all() and (surer > 0.01).mean() > 0.5


def test_the_surest_answer_of_any_attack_counts() -> None:
    """Below τ = 1/2 an attack that only wants a wrong answer may find what the other does not."""
    base = AttackResult("a", "gradient", torch.zeros(0), torch.zeros(0))
    found = [replace(base, rows=np.array(rows), logits=np.log(np.array(p) + 1e-30)) for rows, p in (
        ([0, 2], [[0.5, 0.3, 0.2], [0, 0, 0], [0.4, 0.35, 0.25]]),
        ([0, 1], [[0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0, 0, 0]]),
        ([], np.zeros((4, 0))),
    )]  # fmt: skip
    np.testing.assert_allclose(adversarial_confidence(found, 4), [0.6, 0.8, 0.4, np.nan])
    _, whole = rejected()
    reject = summarize(whole)["reject"]
    assert reject["without"]["robust_error"]["share"] == pytest.approx(1 - whole.robust.mean())


def test_nothing_was_asked_for() -> None:
    _, found = rejected(reject=None)
    assert summarize(found)["reject"] is None and "confidence_adversarial" not in found.outcomes


def test_examples_do_not_see_their_batch() -> None:
    whole, parts = (rejected(batch=size)[1].outcomes for size in (90, 7))
    np.testing.assert_allclose(parts["confidence_adversarial"], whole["confidence_adversarial"], rtol=0, atol=1e-6)


def test_every_number_can_be_made_again_and_a_false_one_is_found(tmp_path: Any) -> None:
    (eval_model, found), given = rejected(), images(Flat())
    content, arrays, kept = summarize(found), found.outcomes, found.examples
    about = {"checkpoint": "best", "epoch": 1, "split": "test", "schema": 3}
    record_files.save_record(tmp_path, "best", {**about, **content}, arrays, kept, {})
    assert record_disagreements(read_evaluation(tmp_path / "best.json")) == ()

    def wrong(figures: dict[str, Any], kept: dict[str, Any]) -> list[str]:
        numbers = verify_record(eval_model, given, rejecting(), figures, arrays, kept)
        return [number.name for number in numbers if not number.agrees]

    assert wrong(content, kept) == []
    lied = copy.deepcopy(content)
    lied["reject"]["robust_error"]["share"] -= 1 / 90
    assert wrong(lied, kept) == ["reject.robust_error.share"]
    lied = copy.deepcopy(content)
    lied["reject"]["threshold"] = 0.0
    assert "reject.threshold" in wrong(lied, kept)
    tame = {**kept, "mistaken.x_adv": given.floats(torch.from_numpy(kept["mistaken.rows"])).numpy() * 0}
    assert "reject.robust_error.share" in wrong(content, tame)


def test_a_record_that_its_arrays_do_not_bear_out_is_called_out(tmp_path: Any) -> None:
    _, found = rejected()
    content = summarize(found)
    for name in ("tpr", "fpr", "accepted", "adversarial", "error", "robust_error"):
        lied = copy.deepcopy(content)
        lied["reject"][name]["share"] += 0.01
        full = {"checkpoint": "best", "epoch": 1, "split": "test", "schema": 3, **lied}
        record_files.save_record(tmp_path, "best", full, found.outcomes, {}, {})
        lines = record_disagreements(read_evaluation(tmp_path / "best.json"))
        assert len(lines) == 1 and lines[0].startswith(f"reject.{name}.share:")
