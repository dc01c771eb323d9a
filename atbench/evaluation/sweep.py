"""PGD-1 … PGD-k on one trajectory, and the same trajectory's answer for other ε.

The iterates of PGD-k with a fixed step size begin with those of PGD-j for every j < k, so one search of the largest k
answers all of them. An example counts as broken at k if any iterate up to the k-th was misclassified, in any restart:
what is reported is monotone in k, in the restarts and in ε, and never above the papers' last-iterate PGD-k of the same
trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atbench.attacks import LABEL_OBJECTIVES, GradientAttack, Objective, State
from atbench.data import Images
from atbench.errors import ConfigError, NumericalError
from atbench.models import bn_mode, untouched
from atbench.rng import ExampleDraws

Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Threat:
    """An evaluation attack: what it maximises, how far and how often it goes.

    objective: `ce` or `margin`; the other names are those of GradientAttack. `seed` fixes the random starts.
    """

    norm: str
    eps: float
    step_size: float
    steps: int
    start: str = "uniform"
    restarts: int = 1
    objective: str = "ce"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in LABEL_OBJECTIVES:
            known = ", ".join(LABEL_OBJECTIVES)
            raise ConfigError("eval.objective", self.objective, "there is no such objective", f"use one of {known}")
        if self.restarts < 1 or self.steps < 0:
            raise ConfigError(
                "eval", f"{self.restarts} restarts of {self.steps} steps", "is no attack", "use at least 1 and 0"
            )


class Victim:
    """A network under evaluation: eval mode and frozen inside `ready`, everything restored afterwards; counts its
    passes.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, rank: int = 0, world: int = 1, reduce: Sum = lambda t: t
    ) -> None:
        self.network, self.batch_size = network, batch_size
        self.rank, self.world, self.reduce = rank, world, reduce
        weight = next(network.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.passes = 0

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A block in which the network is in eval mode and frozen."""
        with untouched(self.network), bn_mode(self.network, "eval"):
            yield

    def logits(self, x: Tensor) -> Tensor:
        """Logits, counted and checked: argmax of NaN is class 0, and would pass for a prediction."""
        self.passes += len(x)
        logits: Tensor = self.network(x)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).all(dim=1)).nonzero()[0])
            raise NumericalError(
                "logits", "NaN or infinite", f"first in row {row} of a batch", "check the weights and the images"
            )
        return logits

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """This process's part of the examples `rows`, in batches."""
        return iter(rows[self.rank :: self.world].split(self.batch_size))

    def load(self, images: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `rows` as floats in [0, 1], with their labels, where the network is."""
        rows = rows.to(images.x.device)
        return images.floats(rows, self.dtype).to(self.device), images.y[rows].to(self.device)

    def correct(self, images: Images) -> Tensor:
        """(n,) booleans, on the CPU: which clean images are classified right."""
        right = torch.zeros(len(images), dtype=torch.long, device=self.device)
        with self.ready(), torch.no_grad():
            for rows in self.batches(torch.arange(len(images))):
                x, y = self.load(images, rows)
                right[rows.to(self.device)] = (self.logits(x).argmax(dim=1) == y).long()
        return self.reduce(right).bool().cpu()

    def broken_at(self, images: Images, threat: Threat, alive: Tensor) -> Tensor:
        """(n,) int16, on the CPU: the first step at which an example was misclassified; 0 where not `alive`, −1 if
        never.

        The start counts as step 1: PGD-1 is broken by its own random start too.
        """
        attack = GradientAttack(threat.norm, threat.eps, threat.steps, threat.step_size, threat.start, keep="first")
        never = threat.steps + 1
        first = torch.where(alive, never, 0).to(self.device)
        found = torch.zeros_like(first)
        with self.ready():
            for rows in self.batches(alive.nonzero().flatten()):
                found[rows.to(self.device)] = never - self._search(images, rows, threat, attack, never)
        first = first - self.reduce(found)
        return torch.where(first == never, -1, first).to(torch.int16).cpu()

    def _search(self, images: Images, rows: Tensor, threat: Threat, attack: GradientAttack, never: int) -> Tensor:
        """First broken step of a batch over all restarts, `never` where none."""
        x, y = self.load(images, rows)
        first = torch.full((len(rows),), never, device=self.device)
        objective = Objective(self.logits, LABEL_OBJECTIVES[threat.objective], y)

        def stop(state: State) -> Tensor:
            wrong = state.outputs.argmax(dim=1) != y[state.rows]
            step = max(state.step, 1)
            first[state.rows] = torch.where(wrong, first[state.rows].clamp(max=step), first[state.rows])
            # A later restart goes on only as far as it could still break an example earlier.
            return wrong | (state.step >= first[state.rows] - 1)

        for restart in range(threat.restarts):
            rng = ExampleDraws(threat.seed, "restart", restart, index=rows)
            attack(objective, x, stop=stop, rng=rng)
        return first

    def adversarial(self, images: Images, threat: Threat) -> Tensor:
        """x_adv (n, C, H, W) for a few examples: the first misclassified iterate, else the last. For pictures."""
        attack = GradientAttack(threat.norm, threat.eps, threat.steps, threat.step_size, threat.start, keep="first")
        rows = torch.arange(len(images))
        x, y = self.load(images, rows)
        objective = Objective(self.logits, LABEL_OBJECTIVES[threat.objective], y)
        with self.ready():
            return attack(
                objective,
                x,
                stop=lambda state: state.outputs.argmax(dim=1) != y[state.rows],
                rng=ExampleDraws(threat.seed, "restart", 0, index=rows),
            )


def robust(broken_at: Tensor, k: int) -> Tensor:
    """(n,) booleans: which examples PGD-k leaves right, from the first broken steps of a trajectory of at least k
    steps.
    """
    return (broken_at == -1) | (broken_at > k)
