"""Warnings about attacks that cannot reach the whole ball and networks that only guess."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from atbench.evaluation.eval_results import EvalResults


def evaluation_warnings(results: EvalResults) -> Iterator[str]:
    """The plan's notes, steps that do not fit the ball, accuracy near chance."""
    threat, logits = results.facts["plan"]["threat"], results.outcomes["logits_clean"]
    yield from results.facts.get("notes", ())
    yield from chance_warning(float(results.clean.mean()), *logits.shape)
    if "broken_at" in results.outcomes:
        yield from step_warnings("pgd", threat["steps"], threat["step_size"], threat["eps"])
    for attack in results.facts["attacks"]:
        steps, eps = attack["settings"].get("steps"), attack["settings"]["eps"]
        relative = attack["settings"].get("rel_step_size")
        size = attack["settings"].get("step_size", None if relative is None else relative * eps)
        # The distances of a minimum-norm attack are kept.
        if isinstance(steps, int) and size is not None and f"distance_{attack['name']}" not in results.outcomes:
            yield from step_warnings(attack["name"], steps, size, eps)


def chance_warning(accuracy: float, n: int, classes: int) -> Iterator[str]:
    """Clean accuracy within two standard errors of chance, or below."""
    chance = 1 / classes
    if n >= 20 and accuracy <= chance + 2 * sqrt(chance * (1 - chance) / n):
        hint = (
            "pixels from 0 to 255, normalised images, another order of channels or classes? It is given RGB in [0, 1]"
        )
        yield f"clean accuracy is near chance ({100 * accuracy:.1f} %): does the network take {hint}"


def step_warnings(name: str, steps: int, size: float, eps: float) -> Iterator[str]:
    """Fixed steps that are too few and small for the ball, or too wide for it."""
    reach = steps * size
    if reach < eps * (1 - 1e-9):
        short = f"{name}: {steps} steps of {size:.4g} move at most {reach:.4g}"
        yield f"{short}: they cannot reach the edge of the ball (eps {eps:.4g}) from its middle"
    if size > 2 * eps * (1 + 1e-9):
        yield f"{name}: a step of {size:.4g} is wider than the whole ball (eps {eps:.4g}): corners only"
