"""What a reader of an evaluation's figures should know about the attacks' own limits."""

from __future__ import annotations

from collections.abc import Iterator

from atbench.evaluation.measure import Evaluation


def warnings(found: Evaluation) -> Iterator[str]:
    """What the plan has to say of itself, and one sentence for each attack whose steps do not fit the ball."""
    threat = found.plan.threat
    yield from found.plan.notes
    if found.surface:
        yield from limits("pgd", threat.steps, threat.step_size, threat.eps)
    for name, each in found.found.items():
        steps, eps = each.settings.get("steps"), each.settings["eps"]
        share = each.settings.get("rel_step_size")
        size = each.settings.get("step_size", None if share is None else share * eps)
        if isinstance(steps, int) and size is not None and not each.minimal:
            yield from limits(name, steps, size, eps)


def limits(name: str, steps: int, size: float, eps: float) -> Iterator[str]:
    """Fixed steps that are too few and small for the ball, or too wide for it."""
    reach = steps * size
    if reach < eps * (1 - 1e-9):
        short = f"{name}: {steps} steps of {size:.4g} move at most {reach:.4g}"
        yield f"{short}: they cannot reach the edge of the ball (eps {eps:.4g}) from its middle"
    if size > 2 * eps * (1 + 1e-9):
        yield f"{name}: a step of {size:.4g} is wider than the whole ball (eps {eps:.4g}): corners only"
