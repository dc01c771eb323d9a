"""What a network is worth that may refuse to answer: confidence-thresholded errors (Stutz et al. 2020, ICML, arXiv
1910.06259, sec. 5).

Predictions whose confidence c = max_k p_k lies below τ are rejected. τ is the highest threshold that keeps a given
share of the right predictions on images that were held out from training: never on test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atbench.attacks import Attack
from atbench.data import Images
from atbench.evaluation.attack_runner import Found
from atbench.interval import wilson

Array = NDArray[Any]
#: The name that the attack on rightly classified images goes by, like every attack of the main threat.
CONFIDENT = "confident"
#: τ lies so much below the confidence that defines it: what another batch size may change of a confidence.
SLACK = 1e-6


@dataclass(frozen=True)
class Reject:
    """What is asked for: `share` of the right predictions on `held` stays accepted; `attack` wants confident errors."""

    share: float
    held: Images
    attack: Attack
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Rejection:
    """What was found. held: confidences (m,) of the right predictions on held-out images; mistaken: the attack on the
    images that are wrong without one. Those on the others are `found[CONFIDENT]`.
    """

    share: float
    threshold: float
    held: Array
    mistaken: Found

    @property
    def kept(self) -> Array:
        """Which of the right predictions on held-out images are accepted, bool (m,)."""
        return np.asarray(self.held >= self.threshold)


def confidence(logits: Array) -> Array:
    """max_k softmax(logits)_k, float64 (n,): single precision would make one of all that is nearly sure."""
    scores = logits.astype(np.float64)
    return np.asarray(1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))


def threshold(right: Array, share: float) -> float:
    """τ such that at least `share` of the confidences `right` (m,) are not below it, as high as can be, less SLACK.

    0, which accepts everything, where there is none.
    """
    if not len(right):
        return 0.0
    rejected = floor((1 - share) * len(right) + 1e-9)  # 1 − 0.99 is a little more than 0.01
    return max(0.0, float(np.sort(right)[min(rejected, len(right) - 1)]) - SLACK)


def adversarial_confidence(attacks: Sequence[Found], n: int) -> Array:
    """(n,): how sure the network is of the surest wrong answer that any attack found; NaN where none did.

    Where τ is below 1/2 a wrong answer need not have more than any other wrong class, so that attacks that only want a
    wrong answer may find what the one that wants confidence does not.
    """
    found = np.full(n, np.nan)
    for each in attacks:
        if len(each.rows):
            found[each.rows] = np.fmax(found[each.rows], confidence(each.logits[each.rows]))
    return found


def masks(right: Array, clean: Array, adversarial: Array, tau: float) -> dict[str, tuple[Array, Array]]:
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


def auc(positive: Array, negative: Array) -> float | None:
    """The chance that a right prediction is surer than an adversarial one, ties half: the area under the ROC curve.
    None where there are none of either.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(positive)
    below, upto = (np.searchsorted(ordered, negative, side=side) for side in ("left", "right"))
    return float((len(positive) - (below + upto) / 2).sum() / (len(positive) * len(negative)))


def share(counts: Array, among: Array) -> dict[str, Any]:
    """{"share", "low", "high", "n"} of `counts` among `among`; None where there is nothing to take a share of."""
    n, hits = int(among.sum()), int((counts & among).sum())
    if n == 0:
        return {"share": None, "low": None, "high": None, "n": 0}
    low, high = wilson(hits, n)
    return {"share": hits / n, "low": float(low), "high": float(high), "n": n}


def figures(found: Rejection, attacks: Sequence[Found], right: Array, logits: Array) -> dict[str, Any]:
    """The part `reject` of a record: all shares with n and interval, at τ and, for the two errors, without rejection.

    attacks: those of the main threat on what is right without one; right: bool (n,), and logits: (n, K), without.
    """
    clean = confidence(logits)
    adversarial = adversarial_confidence([*attacks, found.mistaken], len(right))
    cost = found.mistaken.outcome
    without = masks(right, clean, adversarial, 0.0)
    return {
        "share": found.share,
        "threshold": found.threshold,
        "held_out": share(found.kept, np.ones_like(found.kept)),
        **{name: share(*pair) for name, pair in masks(right, clean, adversarial, found.threshold).items()},
        "without": {name: share(*without[name]) for name in ("error", "robust_error")},
        "auc": auc(clean[right], adversarial[right & ~np.isnan(adversarial)]),
        "seconds": cost.seconds,
        "forwards": cost.forwards,
        "gradients": cost.gradients,
    }
