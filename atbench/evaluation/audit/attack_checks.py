"""Checks that hold attacks against each other: a stronger one must not leave more than a weaker one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.data import stratified_subset
from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.audit.attack_probes import DRAWS, RANGE_STEPS, STEPS, AttackProbes
from atbench.evaluation.audit.outputs import Outputs
from atbench.evaluation.audit.verdicts import Check, judge, not_run, percent, points, tolerance

#: What two attacks may differ by in the wrong direction; Square may gain less (fra31/auto-attack, checks.py).
TAU, SQUARE = 0.005, 0.002
RESTARTS = 10
RADII = (0.25, 0.5, 1, 2, 4)
NAMES = (
    *("half range", "whole range", "loss", "steps", "restarts", "iteration"),
    *("overfitting", "margin", "radius", "noise", "queries", "transfer"),
)


@dataclass(frozen=True)
class AttackChecks:
    """Attacks that were run on the examples `clean`, and the audit's own on some of them.

    A recorded attack is used where it tried all of `clean`: one that tried survivors alone met harder examples than its
    rival did. Otherwise the audit's own stands in. Two attacks are compared on the examples that both tried.
    """

    searches: AttackProbes
    outputs: Outputs
    clean: Tensor
    outcomes: Mapping[str, Outcome]

    def checks(self) -> list[Check]:
        """All of them, those of black boxes last: they count what no search of the others has found."""
        first = [self.half_range(), self.whole_range(), self.loss(), self.steps(), self.restarts(), self.iteration()]
        second = [self.overfitting(), self.margin(), self.radius(), self.noise()]
        return [*first, *second, self.black_box("queries", SQUARE), self.black_box("transfer", TAU)]

    # Shares of examples.

    @property
    def n(self) -> int:
        return len(self.outputs.labels)

    def left(self, broken: Tensor) -> float:
        """Share of the probed examples that an attack of the audit's own leaves right."""
        return float((self.searches.alive & ~broken).sum()) / self.n

    def recorded(self, *names: str) -> Outcome | None:
        """The first of these outcomes that tried all of `clean`."""
        found = [self.outcomes[name] for name in names if name in self.outcomes]
        return next((outcome for outcome in found if bool(outcome.tried[self.clean].all())), None)

    def own(self, name: str, broken: Tensor) -> Outcome:
        return Outcome(name, "gradient", self.searches.alive, broken)

    def pgd(self) -> Outcome:
        recorded = self.recorded("pgd-20", "pgd-50", "pgd-100")
        return recorded or self.own(f"pgd-{STEPS}", self.searches.pgd(STEPS, "ce"))

    def fgsm(self) -> Outcome:
        return self.recorded("fgsm") or self.own("fgsm", self.searches.fgsm(1))

    def union(self, *kinds: str) -> tuple[Tensor, Tensor]:
        """What recorded attacks of these kinds of access tried and broke."""
        chosen = [outcome for outcome in self.outcomes.values() if outcome.access in kinds or not kinds]
        none = torch.zeros_like(self.clean)
        tried = torch.stack([none, *(outcome.tried for outcome in chosen)]).any(dim=0)
        return tried, torch.stack([none, *(outcome.broken for outcome in chosen)]).any(dim=0)

    # The checks, in the order of NAMES.

    def half_range(self) -> Check:
        """Within half of the range (ε = 0.5 in L∞) every image can be made grey, and then one class is answered for
        all: at most chance, or the share of the commonest class, and 2 points remain (Carlini et al. 2019).
        """
        left, classes = self.left(self.searches.range(0.5)), self.outputs.logits.shape[1]
        chance = max(1 / classes, float(self.outputs.labels.bincount().max()) / self.n)
        found = (
            f"PGD-{RANGE_STEPS} in half the range of pixels leaves {percent(left)} right (chance: {percent(chance)})"
        )
        meaning = "every image can be made grey there, so the attack fails, and fails within eps as well"
        return judge("half range", left, tolerance(min(1.0, chance + 0.02), self.n), found, meaning)

    def whole_range(self) -> Check:
        """Within the whole range (ε = 1 in L∞) every image is allowed, of other classes too: nothing remains right."""
        left = self.left(self.searches.range(1.0))
        found = f"PGD-{RANGE_STEPS} in the whole range of pixels leaves {percent(left)} right"
        meaning = "every image is allowed there, so the attack fails, and fails within eps as well"
        return judge("whole range", left, tolerance(TAU, self.n), found, meaning)

    def loss(self) -> Check:
        """The mean objective along PGD-20 from the clean image ends at its highest: at most a tenth of the way from its
        lowest to its highest value is lost (ours; honest networks oscillate by a hundredth).
        """
        losses = self.searches.losses()
        top, low, end = float(losses.max()), float(losses.min()), float(losses[-1])
        value = (top - end) / (top - low) if top > low else 0.0
        found = f"Along PGD-{STEPS} the objective goes from {float(losses[0]):.3g} to {end:.3g}, at most {top:.3g}"
        return judge("loss", value, 0.1, found, "the attack goes downhill, so its gradients mislead")

    def steps(self) -> Check:
        """Twice the steps (of the threat's, of 100 at most) break less than a point more than all attacks so far."""
        k, objective = self.searches.steps, self.searches.threat.objective
        more = self.searches.pgd(2 * k, objective) & ~self.searches.pgd(k, objective) & ~self.union()[1]
        value = float(more.sum()) / self.n
        found = f"PGD-{2 * k} breaks {points(value)} that neither PGD-{k} nor any recorded attack does"
        return judge("steps", value, tolerance(0.01, self.n), found, "the attack has not converged; give it more steps")

    def restarts(self) -> Check:
        """Ten starts break at most ten points more than all attacks so far (ours: with 20 steps of ε/4, honest robust
        networks on 8×8 digits lose up to 9 points at the radius of their training).
        """
        more = self.searches.restarts(RESTARTS - 1, self.searches.threat.objective) & ~self.union()[1]
        value = float(more.sum()) / self.n
        found = f"{RESTARTS} starts of PGD-{STEPS} break {points(value)} that neither one nor any recorded attack does"
        meaning = "the loss has many local maxima; report the worst of many restarts, or use other attacks"
        return judge("restarts", value, tolerance(0.10, self.n), found, meaning)

    def iteration(self) -> Check:
        """PGD leaves at most τ more than FGSM does."""
        value, found = self._more(self.pgd(), self.fgsm())
        meaning = "many steps do less than one, so the iteration is broken or its gradients mislead"
        return judge("iteration", value, tolerance(TAU, self.n), found, meaning)

    def overfitting(self) -> Check:
        """FGSM leaves at most 20 points more than PGD does, unless FGSM itself breaks more the longer it is. L∞ alone:
        a single step of the other norms loses most of its length at the box.

        Twenty points alone would accuse honest networks: where robustness ends they curve, and one long step misses (on
        digits, a network trained by PGD for 0.2 keeps 51 % under FGSM of 0.3, and 8 % under PGD). Catastrophic
        overfitting is robustness to FGSM at its full length and not to shorter steps (Kim et al. 2021, AAAI): from ε/2
        to ε, FGSM gains less than half of what PGD is ahead.
        """
        if self.searches.threat.norm != "linf":
            return not_run("overfitting", "Overfitting to FGSM is looked for in linf alone.")
        value, found = self._more(self.fgsm(), self.pgd())
        gain = self.left(self.searches.fgsm(0.5)) - self.left(self.searches.fgsm(1))
        found += f", and half the length of fgsm would leave {points(gain)} more"
        meaning = "the network is robust to FGSM at this length and not to shorter steps: catastrophic overfitting"
        return judge("overfitting", value, tolerance(0.2, self.n), found, meaning, also=gain < value / 2)

    def margin(self) -> Check:
        """PGD on the margin leaves at most 5 points less than PGD on cross-entropy, which is given ten starts.

        With one start each, networks of small logits differ by luck: honest ones of TRADES on digits by 4 to 11 points
        (n = 430), and by -2 to 5 against ten starts. Where the scale of the logits masks, more starts do not help.
        """
        ce = self.searches.pgd(STEPS, "ce") | self.searches.restarts(RESTARTS - 1, "ce")
        several = self.own(f"pgd-{STEPS} on cross-entropy from {RESTARTS} starts", ce)
        margin = self.own(f"pgd-{STEPS} on the margin from one", self.searches.pgd(STEPS, "margin"))
        value, found = self._more(several, self.recorded("cw_100", "cw_linf") or margin)
        meaning = "cross-entropy is blind to what the margin sees (scale of the logits), and its figure is too high"
        return judge("margin", value, tolerance(0.05, self.n), found, meaning)

    def radius(self) -> Check:
        """Independent PGD-20 at 0, ε/4, ε/2, ε, 2ε, 4ε: no larger radius leaves τ more than a smaller one."""
        right = float((self.outputs.logits.argmax(dim=1) == self.outputs.labels).sum()) / self.n
        shares = [right, *(self.left(self.searches.radius(multiple)) for multiple in RADII)]
        value = max(later - earlier for at, later in enumerate(shares) for earlier in shares[:at])
        radii = f"0, {', '.join(f'{self.searches.threat.eps * multiple:.3g}' for multiple in RADII)}"
        found = f"At eps {radii} PGD-{STEPS} leaves {', '.join(f'{100 * share:.1f}' for share in shares)} %"
        return judge(
            "radius", value, tolerance(TAU, self.n), found, "a larger ball holds the smaller, so the search fails"
        )

    def noise(self) -> Check:
        """Uniform noise breaks at most τ of the examples, beyond what gradients break."""
        tried, broken = self.union("noise")
        own = self.searches.noise()
        who = f"uniform noise ({DRAWS} draws, and what was recorded)"
        return self._unmatched("noise", TAU, tried | self.searches.alive, broken | own, who)

    def black_box(self, access: str, share: float) -> Check:
        """Attacks without gradients of this network break at most `share` beyond what gradients break."""
        tried, broken = self.union(access)
        if not tried.any():
            todo = {"queries": "square or spsa", "transfer": "a transfer attack"}[access]
            return not_run(access, f"No attack by {access} was run: run {todo} to see whether it beats gradients.")
        names = ", ".join(name for name, outcome in self.outcomes.items() if outcome.access == access)
        return self._unmatched(access, share, tried, broken, names)

    def _more(self, one: Outcome, other: Outcome) -> tuple[float, str]:
        """How much more `one` leaves right than `other`, of the examples that both tried, and that as words."""
        both = one.tried & other.tried & self.clean
        n = int(both.sum())
        left = [float((both & ~outcome.broken).sum()) / n for outcome in (one, other)]
        words = f"Of {n} images {one.name} leaves {percent(left[0])} right and {other.name} {percent(left[1])}"
        return left[0] - left[1], words

    def _unmatched(self, name: str, share: float, tried: Tensor, broken: Tensor, who: str) -> Check:
        """What attacks without gradients break and those with gradients do not, even when they try: PGD-100 on the
        margin from five starts takes up the examples in question, so that a weak white box is not called masking.

        A share of the examples that both kinds tried, the audit's own searches included. An attack on survivors alone
        has met those that are broken already: they count as tried.
        """
        white, found = self.union("gradient", "features")
        met = tried if bool((tried & found).any()) else tried | found
        both = met & (white | self.searches.alive)
        beaten = both & broken & ~found & ~self.searches.broken
        rows = beaten.nonzero().flatten()
        rows = rows[stratified_subset(self.searches.images.y.cpu()[rows], self.n)]
        some = torch.zeros_like(beaten).index_fill_(0, rows, True)
        n = int(both.sum())
        threshold, value = tolerance(share, n), float(beaten.sum()) / n
        if value > threshold:
            stand = some & ~self.searches.determined(some)
            value *= float(stand.sum()) / float(some.sum())
        count = int((both & broken).sum())
        sentence = f"Of {n} images {who} breaks {count}, and {points(value)} that gradients do not break"
        return judge(name, value, threshold, sentence, "gradients are masked where others find a way")
