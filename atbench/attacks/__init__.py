"""The inner maximisation: norm balls, objectives, gradient ascent, and the attacks of the evaluation."""

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import State
from atbench.attacks.base import AscentAttack, Attack, Target
from atbench.attacks.losses import (
    LABEL_OBJECTIVES,
    Objective,
    SelfLabelled,
    confidence,
    cross_entropy,
    dlr,
    dlr_towards,
    kl_from,
    label_objective,
    likelihood,
    margin,
    soft_margin,
    wrong_classes,
)
from atbench.attacks.norms.lp_ball import BALLS, L1, L2, Ball, ball
