"""Confidence-thresholded errors of a network that may reject (Stutz et al. 2020, ICML, arXiv 1910.06259, sec. 5).

Predictions whose confidence c = max_k p_k lies below τ are rejected. τ is the highest threshold that keeps a given
share of the right predictions on images that were held out from training: never on test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.evaluation.metrics import Array, proportion

if TYPE_CHECKING:
    from atbench.attacks import Attack
    from atbench.data import Images
    from atbench.evaluation.attack_result import AttackResult

#: Names in the files of the attack on images that are right without an attack, and on those that are wrong.
CONFIDENT, MISCLASSIFIED = "confident", "mistaken"
#: τ lies so much below the confidence that defines it: what another batch size may change of a confidence.
SLACK = 1e-6


@dataclass(frozen=True)
class RejectionPlan:
    """Rejection to evaluate: it accepts `share` of the right predictions on `held`; `attack` maximises confidence."""

    share: float
    held: Images
    attack: Attack
    settings: Mapping[str, Any]


def softmax_confidence(logits: Array) -> Array:
    """max_k softmax(logits)_k, float64 (n,): single precision would make one of all that is nearly sure."""
    scores = logits.astype(np.float64)
    return np.asarray(1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))


def confidence_threshold(right: Array, share: float) -> float:
    """τ such that at least `share` of the confidences `right` (m,) are not below it, as high as can be, less SLACK.

    0, which accepts everything, where there is none.
    """
    if not len(right):
        return 0.0
    rejected = floor((1 - share) * len(right) + 1e-9)  # 1 − 0.99 is a little more than 0.01
    return max(0.0, float(np.sort(right)[min(rejected, len(right) - 1)]) - SLACK)


def adversarial_confidence(attacks: Sequence[AttackResult], n: int) -> Array:
    """(n,): the highest confidence of a wrong answer under any attack; NaN where no attack made one.

    Where τ is below 1/2 a wrong answer need not have more than any other wrong class, so that attacks that only want a
    wrong answer may find what the one that wants confidence does not.
    """
    highest = np.full(n, np.nan)
    for result in attacks:
        if len(result.rows):
            highest[result.rows] = np.fmax(highest[result.rows], softmax_confidence(result.logits[result.rows]))
    return highest


def share_masks(right: Array, clean: Array, adversarial: Array, tau: float) -> dict[str, tuple[Array, Array]]:
    """The shares of a record as masks (what counts, among what), bool (n,) each.

    right: who is right without an attack; clean: confidences without one; adversarial: those of wrong answers under
    attack, NaN where there is none.

    robust_error is RErr(τ) = Σ max{1[f(x)≠y]·1[c(x)≥τ], 1[f(x̃)≠y]·1[c(x̃)≥τ]} / Σ max{1[c(x)≥τ], 1[f(x̃)≠y]·1[c(x̃)≥τ]}:
    errors among the examples that an adversary cannot or does not want to get rejected. (The authors' code counts right
    answers to x̃ into the denominator as well, which is never less.) `adversarial` is what is accepted of the wrong
    answers that the attack made of right ones, the paper's false positives.
    """
    everyone = np.ones_like(right)
    accepted, broken, fooled = clean >= tau, ~np.isnan(adversarial), np.nan_to_num(adversarial, nan=-1.0) >= tau
    return {
        "tpr": (accepted, right),
        "fpr": (accepted, ~right),
        "accepted": (accepted, everyone),
        "adversarial": (fooled, right & broken),
        "error": (~right, accepted),
        "robust_error": ((~right & accepted) | fooled, accepted | fooled),
    }


def roc_auc(positive: Array, negative: Array) -> float | None:
    """The chance that a right prediction is surer than an adversarial one, ties half: the area under the ROC curve.
    None where there are none of either.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(positive)
    below, upto = (np.searchsorted(ordered, negative, side=side) for side in ("left", "right"))
    return float((len(positive) - (below + upto) / 2).sum() / (len(positive) * len(negative)))


def share_figures(counts: Array, among: Array) -> dict[str, Any]:
    """{"share", "low", "high", "n"} of `counts` among `among`; None where there is nothing to take a share of."""
    figures = proportion(counts[among])
    return {"share": figures.pop("accuracy"), **figures}


def rejection_figures(facts: Mapping[str, Any], right: Array, logits: Array, adversarial: Array) -> dict[str, Any]:
    """The part `reject` of a record: all shares with n and interval, at τ and, for the two errors, without rejection.

    facts: `share`, `threshold`, `held_out` and cost. right: bool (n,), and logits: (n, K), without an attack.
    adversarial: (n,), `adversarial_confidence` of all attacks.
    """
    clean = softmax_confidence(logits)
    at_threshold, without = (share_masks(right, clean, adversarial, tau) for tau in (facts["threshold"], 0.0))
    return {
        "share": facts["share"],
        "threshold": facts["threshold"],
        "held_out": facts["held_out"],
        **{name: share_figures(*pair) for name, pair in at_threshold.items()},
        "without": {name: share_figures(*without[name]) for name in ("error", "robust_error")},
        "auc": roc_auc(clean[right], adversarial[right & ~np.isnan(adversarial)]),
        **{key: facts[key] for key in ("seconds", "forwards", "gradients")},
    }
