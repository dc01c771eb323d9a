"""Every number of a record, computed again from the images that it kept: nothing is searched, everything is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atbench.data import Images
from atbench.evaluation import record as records
from atbench.evaluation.ledger import Ledger
from atbench.evaluation.measure import Evaluation, Plan, clean_logits
from atbench.evaluation.outcome import Outcome
from atbench.evaluation.rejection import Rejection
from atbench.evaluation.rejection import kept as accepted
from atbench.evaluation.suite import UNKNOWN, Found, Level, Suite, Surface
from atbench.evaluation.sweep import Threat
from atbench.evaluation.victim import Victim

Array = NDArray[Any]


@dataclass(frozen=True)
class Number:
    """One number of a record and what became of it."""

    name: str
    claimed: float
    again: float

    @property
    def agrees(self) -> bool:
        return self.claimed == self.again


def verify(
    victim: Victim,
    images: Images,
    record: Mapping[str, Any],
    outcomes: Mapping[str, Array],
    kept: Mapping[str, Array],
    held: Images | None = None,
) -> list[Number]:
    """Judge all kept images anew: legal in their own radius, misclassified as floats and as 8-bit images.

    `outcomes` and `kept` are the arrays of the record's two npz files; `held` are the images that the threshold of a
    rejection was made on: what it accepts of them is counted again. Statistics of examples that nothing broke
    (calibration under attack) are no part of it: their images are not kept.
    """
    images = images.sample(record["n"])
    again = records.figures(_rebuilt(victim, images, record, outcomes, kept, held))
    return list(_numbers(record, again))


def _rebuilt(
    victim: Victim,
    images: Images,
    record: Mapping[str, Any],
    outcomes: Mapping[str, Array],
    kept: Mapping[str, Array],
    held: Images | None,
) -> Evaluation:
    """The evaluation as the kept images prove it."""
    clean, logits = clean_logits(victim, images, Ledger(None, {}))
    plan = _plan(record["plan"])
    judge = _Judge(Suite(victim, images, clean, Ledger(None, {}), plan.threat.seed), kept, len(logits[0]))
    again = Evaluation(plan, images, clean, logits)
    multiples = [float(multiple) for multiple in record["plan"]["multiples"]]
    if multiples:
        again.surface = judge.surface("pgd", plan.threat, multiples, plan.eps_steps)
    for attack in record["attacks"]:
        name, settings = attack["name"], attack["settings"]
        tried = torch.from_numpy(outcomes[f"tried_{name}"])
        again.found[name] = judge.found(name, tried, settings["norm"], settings["eps"])
    for name, threat in plan.norms.items():
        again.norms[name] = judge.surface(f"pgd_{name}", threat, [1.0], threat.steps)
    if reject := record.get("reject"):
        assert held is not None, "the threshold stands on held-out images"
        right, logits = clean_logits(victim, held, Ledger(None, {}))
        tau, threat = reject["threshold"], plan.threat
        mistaken = judge.found("mistaken", ~clean, threat.norm, threat.eps)
        again.rejection = Rejection(reject["share"], tau, accepted(right.numpy(), logits, tau), mistaken)
    return again


def _plan(saved: Mapping[str, Any]) -> Plan:
    norms = {name: Threat(**threat) for name, threat in saved["norms"].items()}
    return Plan(Threat(**saved["threat"]), saved["steps"], saved["eps_grid"], saved["eps_steps"], norms=norms)


class _Judge:
    """Turns kept images back into outcomes."""

    def __init__(self, suite: Suite, kept: Mapping[str, Array], classes: int) -> None:
        self.suite, self.kept, self.classes = suite, kept, classes

    def found(self, name: str, tried: Tensor, norm: str, eps: float) -> Found:
        rows, x_adv = self.kept[f"{name}.rows"], torch.from_numpy(self.kept[f"{name}.x_adv"])
        victim, parts = self.suite.victim, []
        with victim.ready():
            for places in torch.arange(len(rows)).split(victim.batch_size):
                x, y = victim.load(self.suite.images, torch.from_numpy(rows)[places])
                given = x_adv[places].to(device=x.device, dtype=x.dtype)
                parts.append(self.suite.judged(x, y, given, norm, eps))
        right = torch.cat([part["broken"].cpu() for part in parts]).numpy() if parts else np.zeros(0, bool)
        eight = torch.cat([part["eight"].cpu() for part in parts]).numpy() if parts else np.zeros(0, bool)
        broken = torch.zeros_like(tried)
        broken[torch.from_numpy(rows[right])] = True
        n = len(tried)
        logits, distance = np.full((n, self.classes), np.nan), np.full(n, np.nan)
        if parts:
            logits[rows] = torch.cat([part["logits"].cpu() for part in parts]).numpy()
        outcome = Outcome(name, "", tried, broken & tried)
        return Found(
            outcome, rows[right], x_adv.numpy()[right], eight[right], logits, distance, {"norm": norm, "eps": eps}
        )

    def surface(self, name: str, threat: Threat, multiples: list[float], eps_steps: int) -> Surface:
        levels: dict[float, Level] = {}
        first = torch.where(self.suite.clean, UNKNOWN, 0)
        for position, multiple in enumerate(multiples):
            found = self.found(f"{name}.{position}", self.suite.clean, threat.norm, multiple * threat.eps)
            steps = dict(zip(self.kept[f"{name}.{position}.rows"], self.kept[f"{name}.{position}.step"], strict=True))
            first = first.clone()
            for row in found.rows:
                first[row] = min(int(first[row]), int(steps[row]))
            levels[multiple] = Level(found, first)
        return Surface(threat, levels, eps_steps)


def _numbers(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Number]:
    """The accuracies of both, side by side."""
    yield Number("clean", record["clean"]["accuracy"], again["clean"]["accuracy"])
    for old, new in zip(record["steps"], again["steps"], strict=True):
        yield Number(f"PGD-{old['k']}", old["accuracy"], new["accuracy"])
    for old, new in zip(record["eps"], again["eps"], strict=True):
        yield Number(f"PGD-{old['k']}, eps {old['eps']:.4g}", old["accuracy"], new["accuracy"])
    for old, new in zip(record["attacks"], again["attacks"], strict=True):
        if old["alone"] is not None:
            yield Number(old["name"], old["alone"]["accuracy"], new["alone"]["accuracy"])
        yield Number(f"after {old['name']}", old["after"]["accuracy"], new["after"]["accuracy"])
    for name, old in record["norms"].items():
        yield Number(name, old["accuracy"], again["norms"][name]["accuracy"])
    if record["union"]:
        yield Number("union of norms", *(each["union"]["union"]["accuracy"] for each in (record, again)))
    yield from _rejected(record, again)
    yield Number("worst case", record["robust"]["accuracy"], again["robust"]["accuracy"])
    eight = record["robust"]["eight_bit"]["accuracy"], again["robust"]["eight_bit"]["accuracy"]
    yield Number("worst case, 8-bit images", *eight)


def _rejected(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Number]:
    """What was accepted and what of it is wrong. The area under the ROC curve to three digits: it is a mean over pairs,
    of which rounding turns a few over.
    """
    old, new = record.get("reject"), again["reject"]
    if not old:
        return
    for name in ("held_out", "tpr", "fpr", "accepted", "adversarial", "error", "robust_error"):
        yield Number(f"reject {name}", *(each[name]["share"] or 0.0 for each in (old, new)))
    yield Number("reject auc", *(round(each["auc"] or 0.0, 3) for each in (old, new)))
