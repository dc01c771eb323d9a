"""What a reader of an evaluation's figures should know about the attacks' own limits."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from atbench.evaluation.evaluator import Evaluation


def warnings(found: Evaluation) -> Iterator[str]:
    """What the plan has to say of itself, steps that do not fit the ball, and a network that only guesses."""
    threat = found.plan.threat
    yield from found.plan.notes
    yield from is_random_guess(float(found.clean.double().mean()), len(found.clean), found.logits.shape[1])
    if found.surface:
        yield from limits("pgd", threat.steps, threat.step_size, threat.eps)
    for name, each in found.found.items():
        steps, eps = each.settings.get("steps"), each.settings["eps"]
        share = each.settings.get("rel_step_size")
        size = each.settings.get("step_size", None if share is None else share * eps)
        if isinstance(steps, int) and size is not None and not each.minimal:
            yield from limits(name, steps, size, eps)


def is_random_guess(accuracy: float, n: int, classes: int) -> Iterator[str]:
    """Clean accuracy within two standard errors of chance, or below."""
    chance = 1 / classes
    if n >= 20 and accuracy <= chance + 2 * sqrt(chance * (1 - chance) / n):
        hint = (
            "pixels from 0 to 255, normalised images, another order of channels or classes? It is given RGB in [0, 1]"
        )
        yield f"clean accuracy is near chance ({100 * accuracy:.1f} %): does the network take {hint}"


def limits(name: str, steps: int, size: float, eps: float) -> Iterator[str]:
    """Fixed steps that are too few and small for the ball, or too wide for it."""
    reach = steps * size
    if reach < eps * (1 - 1e-9):
        short = f"{name}: {steps} steps of {size:.4g} move at most {reach:.4g}"
        yield f"{short}: they cannot reach the edge of the ball (eps {eps:.4g}) from its middle"
    if size > 2 * eps * (1 + 1e-9):
        yield f"{name}: a step of {size:.4g} is wider than the whole ball (eps {eps:.4g}): corners only"
