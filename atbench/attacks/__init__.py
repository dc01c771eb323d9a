"""The inner maximisation: balls, objectives, and the search that joins them."""

from atbench.attacks.ball import BALLS, L1, L2, Ball, Linf, ball
from atbench.attacks.objectives import LABEL_OBJECTIVES, Objective, cross_entropy, kl_from, margin, soft_margin
from atbench.attacks.search import GradientAttack, State

__all__ = [
    "BALLS",
    "L1",
    "L2",
    "LABEL_OBJECTIVES",
    "Ball",
    "GradientAttack",
    "Linf",
    "Objective",
    "State",
    "ball",
    "cross_entropy",
    "kl_from",
    "margin",
    "soft_margin",
]
