"""Time and memory of a whole run, foretold after its first steps.

Training takes what its steps took so far. Validation and evaluation are counted in forward passes of one image, whose
time follows from the steps and the least passes of one (`least_passes`): at most so much, for attacks pass over images
that they have broken, and larger batches are faster. Audits, and attacks of a method that grow from epoch to epoch, are
not foreseen.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass, replace

import torch

from atbench.attacks import Attack
from atbench.evaluation import PGDConfig, Plan
from atbench.methods import Method
from atbench.reporting.wording import duration, file_size
from atbench.training import Trainer

_WARM_UP = 3  # steps that may be slower than the others: compiling, allocating, choosing kernels
_STEPS, _SECONDS = 10, 3.0  # measured at least, unless the first epoch ends before


class Forecast:
    """Measures the first steps of a training, from where it stands.

    passes: of the evaluation after it, forward passes of one image.
    """

    def __init__(self, trainer: Trainer, passes: float) -> None:
        self.trainer, self.passes = trainer, passes
        self._steps, self._began, self._told = 0, 0.0, False

    def step(self) -> str | None:
        """Called after every step; what the run will take, once it can be said."""
        if self._told:
            return None
        self._steps += 1
        if self._steps == _WARM_UP:
            self._began = time.monotonic()
        clock, measured, spent = self.trainer.method.clock, self._steps - _WARM_UP, time.monotonic() - self._began
        if measured < 1 or (clock.step < clock.steps and (measured < _STEPS or spent < _SECONDS)):
            return None
        self._told = True
        return self._sentence(spent / measured)

    def _sentence(self, seconds: float) -> str:
        """seconds: of a step."""
        clock = self.trainer.method.clock
        left = clock.epochs - clock.epoch
        a_pass = seconds / self.trainer.data.batch_size / least_passes(self.trainer.method)
        times = estimate(self.trainer, seconds, a_pass, left, left * clock.steps - clock.step, self.passes)
        parts = [f"training {duration(times.training)}", f"validation at most {duration(times.validation)}"]
        parts += [f"evaluation at most {duration(times.evaluation)}"] if times.evaluation else []
        memory = peak_memory(self.trainer.world.device)
        return f"estimate  {', '.join(parts)}" + (f"; memory so far {file_size(memory)}" if memory else "")


@dataclass(frozen=True)
class Estimate:
    """Seconds of what is left of a run; of validation and evaluation at most."""

    training: float
    validation: float
    evaluation: float


def least_passes(method: Method) -> float:
    """Forward passes that a step takes at least: the method's cost; where that varies, those of an update, whose
    backward pass is two. No more than these are sure, for a search may pass over all images.
    """
    return method.forward_cost(method.attack.steps) or 3.0


def estimate(trainer: Trainer, seconds: float, a_pass: float, epochs: int, steps: int, passes: float) -> Estimate:
    """What `epochs` and `steps` that are left take. seconds: of a step; a_pass: of a forward pass of one image, at
    most; passes: of the evaluation that follows.
    """
    validation = a_pass * validation_passes(trainer) * -(-epochs // trainer.recipe.select_every)
    return Estimate(seconds * steps, validation, a_pass * passes)


def validation_passes(trainer: Trainer) -> float:
    """Forward passes of one validation."""
    validation, images = trainer.validation, len(trainer.validation.held) + len(trainer.validation.fitted)
    others = sum(_pgd_passes(threat) for threat in validation.others) * len(validation.held)
    return images * (1 + _pgd_passes(validation.threat)) + others


def evaluation_passes(plan: Plan, images: int) -> float:
    """Forward passes of an evaluation at most, if no attack breaks anything."""
    threat, radii = plan.threat, len({*plan.eps_grid} - {0.0, 1.0})
    sweep = _pgd_passes(threat) + radii * _pgd_passes(replace(threat, steps=plan.eps_steps)) if plan.steps else 0.0
    attacks = sum(attack_passes(attack) for attack, _ in plan.attacks.values())
    norms = sum(_pgd_passes(other) for other in plan.norms.values())
    return min(plan.limit or images, images) * (1 + sweep + attacks + norms)


def attack_passes(attack: Attack) -> float:
    """Forward passes an image at most; a gradient is two."""
    each = 1 if attack.access in ("queries", "noise") else 2
    return float(each * attack.steps * (getattr(attack, "restarts", 1) or 1) * (getattr(attack, "targets", 1) or 1))


def _pgd_passes(threat: PGDConfig) -> float:
    return float(2 * threat.steps * threat.restarts)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device that tensors took at most, on the CPU of the process; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if importlib.util.find_spec("resource") is None:  # Windows
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
