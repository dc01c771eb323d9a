"""The inner maximisation: balls, objectives, and the search that joins them."""

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import State
from atbench.attacks.base import AscentAttack, Attack, Target, wrong
from atbench.attacks.losses import (
    LABEL_OBJECTIVES,
    Objective,
    SelfLabelled,
    carlini,
    confidence,
    cross_entropy,
    dlr,
    dlr_towards,
    kl_from,
    label_objective,
    likelihood,
    margin,
    soft_margin,
    towards,
)
from atbench.attacks.norms.lp_ball import BALLS, L1, L2, Ball, Linf, ball

__all__ = [
    "BALLS",
    "L1",
    "L2",
    "LABEL_OBJECTIVES",
    "AscentAttack",
    "Attack",
    "Ball",
    "GradientAttack",
    "Linf",
    "Objective",
    "SelfLabelled",
    "State",
    "Target",
    "ball",
    "carlini",
    "confidence",
    "cross_entropy",
    "dlr",
    "dlr_towards",
    "kl_from",
    "label_objective",
    "likelihood",
    "margin",
    "soft_margin",
    "towards",
    "wrong",
]
