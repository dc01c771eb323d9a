"""Results of an evaluation, column by column: the arrays of its two npz files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atbench.evaluation.metrics import Array
from atbench.evaluation.rejection import adversarial_confidence

if TYPE_CHECKING:
    from atbench.evaluation.attack_result import AttackResult

#: In first broken steps: nothing broke this example.
NEVER = -1


def robust_after(broken_at: Any, k: int | None = None) -> Any:
    """(n,) booleans: right after k steps (None: all), from first broken steps, an array or a tensor: 0 where an example
    is wrong without an attack, NEVER where nothing broke it.
    """
    never = broken_at == NEVER
    return never if k is None else never | (broken_at > k)


@dataclass
class EvalResults:
    """An evaluation as its files hold it, filled in as it runs. docs/run_folder.md lists the columns.

    facts: what is no function of the columns, under the keys of the record: `of`, `random`, `plan`, access, settings
        and cost of `attacks`, the plan and cost of `reject`, `members`, `unforeseen`, the sums of costs; and `notes`,
        warnings of the plan. Of results that are read back it is the record.
    outcomes: the columns of `<name>.npz`, one entry an example. examples: those of `<name>.examples.npz`, one entry an
        adversarial example.
    """

    facts: dict[str, Any]
    outcomes: dict[str, Array]
    examples: dict[str, Array] = field(default_factory=dict)

    @property
    def clean(self) -> Array:
        """(n,) booleans: right without an attack."""
        return self.outcomes["clean"]

    @property
    def swept(self) -> Array:
        """(n,) booleans: right without an attack and after all steps of the sweep at ε, if there is one."""
        return self.clean & robust_after(self.outcomes["broken_at"]) if "broken_at" in self.outcomes else self.clean

    @property
    def robust(self) -> Array:
        """(n,) booleans: right without an attack and under every attack of the main threat so far."""
        robust = self.swept.copy()
        for attack in self.facts["attacks"]:
            robust &= ~self.outcomes[f"broken_{attack['name']}"]
        return robust

    @property
    def attack_names(self) -> list[str]:
        """Attacks of the main threat, the sweep as one."""
        return [*(["pgd"] if "broken_at" in self.outcomes else []), *(each["name"] for each in self.facts["attacks"])]

    @property
    def main(self) -> list[str]:
        """The attacks of the main threat by their names in `examples`: radii of the sweep up to ε, one by one."""
        radii = [f"pgd.{at}" for at, multiple in enumerate(self.facts["plan"]["multiples"]) if multiple <= 1]
        return [*radii, *(each["name"] for each in self.facts["attacks"])]

    def add_sweep(self, radii: Mapping[float, AttackResult], norm: str = "") -> None:
        """PGD at multiples of ε, ascending: of the main threat, or of another norm."""
        broken = np.zeros(len(self.clean), bool)
        for at, (multiple, result) in enumerate(radii.items()):
            if not norm and multiple <= 1:
                self._add_logits(result, broken)
                broken |= result.broken.numpy()
            name = f"pgd_{norm}.{at}" if norm else f"pgd.{at}"
            self._keep(name, result)
            self.examples[f"{name}.step"] = result.broken_at[result.rows]
        self.outcomes[f"broken_at_{norm}" if norm else "broken_at"] = radii[1.0].broken_at
        if norm:
            return
        plan, surface = self.facts["plan"], {multiple: result.broken_at for multiple, result in radii.items()}
        plan["multiples"], eps, k = list(radii), plan["threat"]["eps"], plan["eps_steps"]
        self.outcomes |= {"surface_eps": np.array([m * eps for m in radii]), "surface": np.stack([*surface.values()])}
        if grid := sorted(plan["eps_grid"]):
            self.outcomes["eps_grid"] = np.array([multiple * eps for multiple in grid])
            masks = [robust_after(surface[multiple], k) if multiple else self.clean for multiple in grid]
            self.outcomes["eps_robust"] = np.stack(masks)

    def add_attack(self, result: AttackResult) -> None:
        """A further attack of the main threat."""
        self._add_logits(result, self.clean & ~self.robust)
        self._keep(result.name, result)
        entry = {"name": result.name, "access": result.access, "settings": dict(result.settings), **result.cost}
        self.facts["attacks"].append(entry)
        self.outcomes[f"tried_{result.name}"] = result.tried.numpy()
        self.outcomes[f"broken_{result.name}"] = result.broken.numpy()
        if result.minimal:
            self.outcomes[f"distance_{result.name}"] = result.distance

    def add_misclassified(self, result: AttackResult) -> None:
        """The attack of a rejection on what is wrong without one."""
        self._add_confidence(result)
        self._keep(result.name, result)

    def _keep(self, name: str, result: AttackResult) -> None:
        """Adversarial examples, and the cost in the sums."""
        columns = {"rows": result.rows, **result.kept}
        self.examples |= {f"{name}.{key}": column for key, column in columns.items()}
        for key, spent in (("seconds", "seconds"), ("forward_passes", "forwards"), ("gradient_passes", "gradients")):
            self.facts[key] += result.cost[spent]

    def _add_logits(self, result: AttackResult, broken: Array) -> None:
        """Each example's logits at its adversarial image, or at the best try of the last attack on it; the clean ones
        where it is wrong without. `broken` (n,): by the attacks before.
        """
        logits = self.outcomes.setdefault("logits_adversarial", self.outcomes["logits_clean"].copy())
        rows = result.tried.numpy() & ~broken
        if rows.any():  # an attack that ran on nothing does not know how many classes there are
            logits[rows] = result.logits[rows]
        self._add_confidence(result)

    def _add_confidence(self, result: AttackResult) -> None:
        """The confidence of the surest wrong answer, where predictions may be rejected."""
        if (surest := self.outcomes.get("confidence_adversarial")) is not None:
            np.fmax(surest, adversarial_confidence([result], len(surest)), out=surest)
