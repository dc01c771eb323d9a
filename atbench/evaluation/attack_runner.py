"""Attacks on a network, each judged by the evaluation and not by itself, and the worst case of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atbench.attacks import Attack, ball
from atbench.data import Images
from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig, search
from atbench.evaluation.result_cache import ResultCache
from atbench.seeding import ExampleDraws, derive

Array = NDArray[Any]
#: In a search over several radii: no step has broken this example so far.
UNKNOWN = torch.iinfo(torch.int16).max
#: What rounding may add to a norm: images are float32 in [0, 1].
SLACK = 1e-6
GREY_LEVELS = 255


@dataclass(frozen=True)
class Found:
    """What is kept of one attack: its outcome, and its images where it broke something.

    rows: int64 (m,), the places of the broken examples; x_adv: float32 (m, C, H, W); eight: booleans (m,), which of
        them are still misclassified with pixels rounded to 8 bits.
    logits: (n, K), after the attack where it was tried, NaN elsewhere. distance: (n,) norms of the perturbations that
        are misclassified, in the ball or not; infinite where none is, NaN where not tried.
    """

    outcome: Outcome
    rows: Array
    x_adv: Array
    eight: Array
    logits: Array
    distance: Array
    settings: Mapping[str, Any]
    minimal: bool = False


def legal(x: Tensor, x_adv: Tensor, norm: str, eps: float) -> Tensor:
    """(B,) booleans: finite, in the box, and ‖x_adv − x‖ ≤ ε up to rounding."""
    flat = x_adv.flatten(1)
    inside = torch.isfinite(flat).all(dim=1) & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
    return inside & (ball(norm).norm(x_adv.double() - x.double()) <= eps * (1 + SLACK) + SLACK)


def eight_bit(x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv on the grid of 8-bit images, each pixel rounded towards x: no norm grows, so that it stays in the ball.

    `x` lies on the grid itself. Steps that are whole but for rounding count as whole.
    """
    shift = (x_adv - x).double() * GREY_LEVELS
    whole = torch.trunc(shift + shift.sign() * 100 * SLACK)
    return ((x.double() * GREY_LEVELS).round() + whole).div(GREY_LEVELS).clamp(0, 1).to(x.dtype)


class Suite:
    """Runs attacks on the examples that a network has right, in the same main threat, and remembers what they found."""

    def __init__(self, eval_model: EvalModel, images: Images, clean: Tensor, cache: ResultCache, seed: int) -> None:
        self.eval_model, self.images, self.clean, self.cache, self.seed = eval_model, images, clean, cache, seed

    def attack(self, name: str, attack: Attack, settings: Mapping[str, Any], tried: Tensor) -> Found:
        """Run an attack on the examples `tried` (n,), booleans."""

        def work(rows: Tensor) -> dict[str, Tensor]:
            with self.eval_model.ready():
                x, y, x_adv = self.perturb(name, attack, rows)
                return self.judged(name, rows, x, y, x_adv, attack.norm, attack.eps)

        facts = {"norm": attack.norm, "eps": attack.eps, **settings}
        columns = self.cache.measure(self.eval_model, name, facts, tried.nonzero().flatten(), work)
        found = self._found(name, attack.access, tried, columns, facts)
        return replace(found, minimal=attack.minimal)

    def perturb(self, name: str, attack: Attack, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and x_adv of the examples `rows`, one batch; call it inside `EvalModel.ready`."""
        x, y = self.eval_model.load(self.images, rows)
        # A network that draws numbers of its own draws the same ones the next time.
        torch.manual_seed(derive(self.seed, name, int(rows[0])))
        return x, y, attack(self.eval_model, x, y, ExampleDraws(self.seed, name, index=self.images.places(rows)))

    def judged(
        self, name: str, rows: Tensor, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps: float
    ) -> dict[str, Tensor]:
        """What is believed of an attack's answer: the prediction at the image as it will be stored, if it is legal.

        `name` and `rows` are for the numbers that a network draws of its own.
        """
        x_adv = torch.where(torch.isfinite(x_adv), x_adv, x).float().to(x.dtype)
        places = self.images.places(rows)
        with torch.no_grad():
            logits = self.eval_model.judged(x_adv, places, self.seed, name)
            rounded = self.eval_model.judged(eight_bit(x, x_adv), places, self.seed, name)
        wrong = logits.argmax(dim=1) != y
        broken = wrong & legal(x, x_adv, norm, eps)
        return {
            "broken": broken,
            "eight": broken & (rounded.argmax(dim=1) != y),
            "logits": logits.float(),
            "distance": torch.where(wrong, ball(norm).norm(x_adv.double() - x.double()), torch.inf),
            "x_adv": x_adv.float(),
        }

    def _found(
        self, name: str, access: str, tried: Tensor, columns: dict[str, Array], settings: Mapping[str, Any]
    ) -> Found:
        rows = tried.nonzero().flatten().numpy()
        n = len(self.images)
        if not len(rows):
            nothing = Outcome(name, access, tried, torch.zeros(n, dtype=torch.bool))
            empty = np.zeros((0, *self.images.x.shape[1:]), np.float32)
            none = np.full(n, np.nan)
            return Found(nothing, rows, empty, np.zeros(0, bool), np.full((n, 0), np.nan), none, settings)
        hit = columns["broken"]
        broken = torch.zeros(n, dtype=torch.bool)
        broken[torch.from_numpy(rows[hit])] = True
        logits = np.full((n, columns["logits"].shape[1]), np.nan, np.float32)
        distance = np.full(n, np.nan)
        logits[rows], distance[rows] = columns["logits"], columns["distance"]
        forwards, gradients = (round(float(columns[key].sum())) for key in ("forwards", "gradients"))
        seconds = round(float(columns["seconds"].sum()), 3)
        outcome = Outcome(name, access, tried, broken, seconds, forwards, gradients)
        return Found(outcome, rows[hit], columns["x_adv"][hit], columns["eight"][hit], logits, distance, settings)

    def surface(self, threat: PGDConfig, multiples: Sequence[float], eps_steps: int) -> Surface:
        """PGD over k and ε: ascending radii, each searched only for what is not broken yet, or could be earlier.

        `multiples` of the threat's ε, the step size scaled along; the threat's own ε takes all of its steps, the others
        `eps_steps`.
        """
        levels: dict[float, Level] = {}
        before, chain = torch.where(self.clean, UNKNOWN, 0), list[dict[str, Any]]()
        for multiple in sorted({*multiples, 1.0} - {0.0}):
            steps = threat.steps if multiple == 1 else eps_steps
            here = replace(threat, eps=multiple * threat.eps, step_size=multiple * threat.step_size, steps=steps)
            levels[multiple] = self._level(here, before, chain)
            before = levels[multiple].first
            chain = [*chain, asdict(here)]
        return Surface(threat, levels, eps_steps)

    def _level(self, threat: PGDConfig, before: Tensor, chain: list[dict[str, Any]]) -> Level:
        """One radius after the smaller ones in `chain`, which broke what `before` says."""
        eval_model = self.eval_model

        def work(rows: Tensor) -> dict[str, Tensor]:
            x, y = eval_model.load(self.images, rows)
            with eval_model.ready():
                torch.manual_seed(derive(self.seed, "pgd", int(rows[0])))
                found = search(eval_model, x, y, self.images.places(rows), threat, before[rows])
                judged = self.judged(threat.norm, rows, x, y, found.x_adv, threat.norm, threat.eps)
            earlier = found.first < before[rows].clamp(max=threat.steps + 1).to(found.first.device)
            return {**judged, "broken": judged["broken"] & earlier, "first": found.first}

        tried = before > 1
        settings = asdict(threat)
        rows = tried.nonzero().flatten()
        columns = self.cache.measure(eval_model, "pgd", {**settings, "after": chain}, rows, work)
        found = self._found("pgd", "gradient", tried, columns, settings)
        first = before.clone()
        if columns:
            hit = torch.from_numpy(columns["broken"])
            first[rows[hit]] = torch.from_numpy(columns["first"])[hit]
        return Level(found, first)


@dataclass(frozen=True)
class Level:
    """PGD at one radius. first: int64 (n,), the first step at which an example broke at this or a smaller radius;
    UNKNOWN where none did, 0 where it was wrong without an attack. found: what this radius added.
    """

    found: Found
    first: Tensor


@dataclass(frozen=True)
class Surface:
    """PGD over steps and radii: `levels` by multiple of the threat's ε."""

    threat: PGDConfig
    levels: Mapping[float, Level]
    eps_steps: int

    @property
    def main(self) -> Level:
        return self.levels[1.0]
