"""Objectives of attacks: one number per example, computed from the network's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks.norms.lp_ball import clip
from atbench.errors import ConfigError
from atbench.models.hooks import has_hooks


@dataclass
class Objective:
    """`value(network(x'), *args) -> (B,)`, to be maximised over x'.

    `args` is a per-example tensor (labels, clean probabilities, target features) or several: the attack knows neither
    labels nor models. A call returns the values *and* the outputs, so that stop rules and success tests need no forward
    of their own.
    """

    #: The value is computed from a gradient to x', which the attack differentiates again: fp32, and a graph at every
    #: point, those too where the attack needs no gradient.
    second_order: ClassVar[bool] = False

    network: Callable[[Tensor], Any]
    value: Callable[..., Tensor]
    args: Tensor | tuple[Tensor, ...] = ()

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        """Values (b,) and outputs for `x_adv`, which holds the examples `rows` of the batch (all, if None).

        `step` is the number of steps taken so far; objectives that change with it (a decaying weight) override this.
        """
        outputs = self.network(x_adv)
        args = self.args if isinstance(self.args, tuple) else (self.args,)
        args = args if rows is None else tuple(tensor[rows] for tensor in args)
        return self.value(outputs, *args), outputs

    def modules(self) -> list[nn.Module] | None:
        """The modules that a call is made of, if it depends on x', `args` and them alone; None where that is not sure:
        a subclass may hold tensors of its batch, and so may a method, a closure or what a hook calls.
        """
        function = isinstance(self.value, FunctionType) and self.value.__qualname__.isidentifier()
        parts = [self.network] if function else [self.network, self.value]
        modules = [part for part in parts if isinstance(part, nn.Module) and not has_hooks(part)]
        return modules if type(self) is Objective and len(modules) == len(parts) else None


class SelfLabelled(Objective):
    """`value(network(x'), labels)` with the network's own labels, which `pick` takes from the logits at the starting
    point, in one pass with the gradient.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], value: Callable[..., Tensor], pick: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(network, value)
        self.pick = pick

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        logits = self.network(x_adv)
        if step == 0:
            self.args = (self.pick(logits.detach()),)
        (labels,) = self.args if rows is None else (tensor[rows] for tensor in self.args)
        return self.value(logits, labels), logits


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(z)_y per example; `y` class indices (B,) or soft labels (B, K)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y: positive exactly where the prediction is wrong (Carlini & Wagner 2017, κ = 0)."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1) - true


def soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp_{k≠y} z_k − z_y, the SLM of MMA (Ding et al. 2020, sec. 2.2): negative exactly where p_y > 1/2."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1) - true


def carlini(logits: Tensor, y: Tensor, kappa: float = 50.0) -> Tensor:
    """min(max_{k≠y} z_k − z_y, κ): the margin as Madry, TRADES and most papers' "CW-k" clamp it.

    κ = 50 (MadryLab/cifar10_challenge, pgd_attack.py): beyond it there is nothing to gain.
    """
    return clip(margin(logits, y), -torch.inf, kappa)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{k≠y} z_k − z_y) / (z_(1) − z_(3)), z sorted descending; K ≥ 3.

    Invariant under z → a·z + b with a > 0 (Croce & Hein 2020, arXiv 2003.01690, eq. 6). Raises ConfigError for fewer
    classes.
    """
    ordered = _highest(logits, 3)
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """log max_{k≠y} softmax(z)_k, the confidence in a wrong class (Stutz et al. 2020, ICML, arXiv 1910.06259, eq. 7).

    The logarithm of the paper's objective has the same maximiser, directions and comparisons, and a gradient where the
    probability itself would be rounded to 0.
    """
    log_p = F.log_softmax(logits, dim=1)
    return log_p.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def _highest(logits: Tensor, count: int) -> Tensor:
    """The `count` highest logits, (B, count)."""
    if logits.shape[1] < count:
        why = f"dlr compares the {count} highest logits, and the network has {logits.shape[1]} classes"
        raise ConfigError("attack.objective", "dlr", why, "use ce or margin")
    return logits.topk(count, dim=1).values


def wrong_classes(y: Tensor, classes: int, u: Tensor) -> Tensor:
    """(B,): for each label one of the other classes, each as likely for u ~ U(-1, 1), (B,)."""
    return (y + 1 + ((u + 1) / 2 * (classes - 1)).long().clamp_max(classes - 2)) % classes


def likelihood(logits: Tensor, t: Tensor) -> Tensor:
    """log softmax(z)_t per example, for an attack towards the class t."""
    return -F.cross_entropy(logits, t, reduction="none")


def towards(logits: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """z_t − z_y: the margin to one class t (MultiTargeted, Gowal et al. 2019, arXiv 1910.09338)."""
    return (logits.gather(1, t[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def dlr_towards(logits: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """(z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), z sorted descending (Croce & Hein 2020, eq. 7).

    Raises ConfigError for fewer than four classes.
    """
    ordered = _highest(logits, 4)
    return towards(logits, y, t) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


def kl_from(logits: Tensor, p: Tensor) -> Tensor:
    """KL(p ‖ softmax(z)) = Σ_k p_k (log p_k − log softmax(z)_k) per example; `p` (B, K) probabilities."""
    return F.kl_div(F.log_softmax(logits, dim=1), p, reduction="none").sum(dim=1)


def fewest_classes(value: Callable[..., Tensor]) -> int:
    """The least number of classes for an objective: DLR compares the three highest logits, its targeted form four."""
    return {dlr: 3, dlr_towards: 4}.get(value, 2)


#: Objectives of (logits, labels) that a configuration can name.
LABEL_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "cw": carlini,
    "dlr": dlr,
    "confidence": confidence,
}


def label_objective(name: str, key: str = "attack.objective") -> Callable[[Tensor, Tensor], Tensor]:
    """The objective of (logits, labels) called `name`. Raises ConfigError, naming `key`, if there is none."""
    if name not in LABEL_OBJECTIVES:
        known = ", ".join(LABEL_OBJECTIVES)
        raise ConfigError(key, name, "there is no such objective", f"use one of {known}")
    return LABEL_OBJECTIVES[name]
