"""Audit checks that compare attacks: a stronger one must not leave a higher robust accuracy than a weaker one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.data import stratified_subset
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.audit.attack_probes import DRAWS, RANGE_STEPS, STEPS, AttackProbes
from atbench.evaluation.audit.outputs import Outputs
from atbench.evaluation.audit.verdicts import Check, allowed_share, as_percent, as_points, not_run, threshold_check

#: What two attacks may differ by in the wrong direction; Square may gain less (fra31/auto-attack, checks.py).
TAU, SQUARE = 0.005, 0.002
RESTARTS = 10
RADII = (0.25, 0.5, 1, 2, 4)
NAMES = (
    *("half range", "whole range", "loss", "steps", "restarts", "iteration"),
    *("overfitting", "margin", "stronger attacks", "radius", "noise", "queries", "transfer"),
)


@dataclass(frozen=True)
class AttackChecks:
    """Comparisons of the attacks that were run (`results`) and of the audit's own `probes`.

    A recorded attack is used where it tried all of `clean`: one that tried only what was still robust met harder
    examples than its rival. Otherwise the audit's own replaces it. Two attacks are compared on examples both tried.
    """

    probes: AttackProbes
    outputs: Outputs
    clean: Tensor
    results: Mapping[str, AttackResult]

    def checks(self) -> list[Check]:
        """All checks, those of black boxes last: they count what no probe of the others broke."""
        first = [self.half_range(), self.whole_range(), self.loss(), self.steps(), self.restarts(), self.iteration()]
        second = [self.overfitting(), self.margin(), self.stronger_attacks(), self.radius(), self.noise()]
        return [*first, *second, self.black_box("queries", SQUARE), self.black_box("transfer", TAU)]

    @property
    def n(self) -> int:
        return len(self.outputs.labels)

    def robust_share(self, broken: Tensor) -> float:
        """Share of the probed examples that a probe leaves right."""
        return float((self.probes.mask & ~broken).sum()) / self.n

    def recorded(self, *names: str) -> AttackResult | None:
        """The first of these attacks that tried all of `clean`."""
        results = [self.results[name] for name in names if name in self.results]
        return next((result for result in results if bool(result.tried[self.clean].all())), None)

    def probe_result(self, name: str, broken: Tensor) -> AttackResult:
        return AttackResult(name, "gradient", self.probes.mask, broken)

    def pgd(self) -> AttackResult:
        return self.recorded("pgd-20", "pgd-50", "pgd-100") or self.probe_result(
            f"pgd-{STEPS}", self.probes.pgd(STEPS, "ce")
        )

    def fgsm(self) -> AttackResult:
        return self.recorded("fgsm") or self.probe_result("fgsm", self.probes.fgsm(1))

    def union(self, *kinds: str) -> tuple[Tensor, Tensor]:
        """(N,) masks: what recorded attacks of these kinds of access, or of all, tried and broke."""
        results = [result for result in self.results.values() if result.access in kinds or not kinds]
        none = torch.zeros_like(self.clean)
        tried = torch.stack([none, *(result.tried for result in results)]).any(dim=0)
        return tried, torch.stack([none, *(result.broken for result in results)]).any(dim=0)

    def half_range(self) -> Check:
        """Within half of the range (ε = 0.5 in L∞) every image can be made grey, and all get one prediction: accuracy
        is at most chance, or the share of the commonest class, plus 2 points (Carlini et al. 2019).
        """
        left, classes = self.robust_share(self.probes.range(0.5)), self.outputs.logits.shape[1]
        chance = max(1 / classes, float(self.outputs.labels.bincount().max()) / self.n)
        measured = f"Robust accuracy under PGD-{RANGE_STEPS} at half the pixel range is {as_percent(left)}"
        measured += f" (chance: {as_percent(chance)})"
        meaning = "every image can be made grey there, so the attack is broken, within eps too"
        return self._share("half range", left, min(1.0, chance + 0.02), measured, meaning)

    def whole_range(self) -> Check:
        """Within the whole range (ε = 1 in L∞) every image is allowed, of other classes too: accuracy is 0."""
        left = self.robust_share(self.probes.range(1.0))
        measured = f"Robust accuracy under PGD-{RANGE_STEPS} at the whole pixel range is {as_percent(left)}"
        meaning = "every image is allowed there, so the attack is broken, within eps too"
        return self._share("whole range", left, TAU, measured, meaning)

    def loss(self) -> Check:
        """The mean objective along PGD-20 from the clean image ends at its highest: at most a tenth of the way from its
        lowest to its highest value is lost (ours; honest networks oscillate by a hundredth).
        """
        losses = self.probes.losses()
        top, low, end = float(losses.max()), float(losses.min()), float(losses[-1])
        value = (top - end) / (top - low) if top > low else 0.0
        measured = f"Along PGD-{STEPS} the loss goes from {float(losses[0]):.3g} to {end:.3g}, maximum {top:.3g}"
        return threshold_check("loss", value, 0.1, measured, "the attack decreases the loss, so its gradients mislead")

    def steps(self) -> Check:
        """Twice the steps (of the threat's, of 100 at most) break less than a point more than all attacks so far."""
        k, objective = self.probes.steps, self.probes.threat.objective
        more = self.probes.pgd(2 * k, objective) & ~self.probes.pgd(k, objective) & ~self.union()[1]
        value = float(more.sum()) / self.n
        measured = f"PGD-{2 * k} breaks {as_points(value)} more than PGD-{k} and all recorded attacks"
        return self._share("steps", value, 0.01, measured, "PGD has not converged; increase eval.steps")

    def restarts(self) -> Check:
        """Ten starts break at most ten points more than all attacks so far (ours: with 20 steps of ε/4, honest robust
        networks on 8×8 digits lose up to 9 points at the radius of their training).
        """
        more = self.probes.restarts(RESTARTS - 1, self.probes.threat.objective) & ~self.union()[1]
        value = float(more.sum()) / self.n
        starts = f"{RESTARTS} starts of PGD-{STEPS}"
        measured = f"{starts} break {as_points(value)} more than one start and all recorded attacks"
        meaning = "the loss has many local maxima; increase eval.restarts or add other attacks"
        return self._share("restarts", value, 0.10, measured, meaning)

    def iteration(self) -> Check:
        """PGD leaves at most τ more than FGSM does."""
        value, measured = self._difference(self.pgd(), self.fgsm())
        meaning = "many steps are weaker than one, so the iteration is broken or its gradients mislead"
        return self._share("iteration", value, TAU, measured, meaning)

    def overfitting(self) -> Check:
        """FGSM leaves at most 20 points more than PGD does, unless FGSM itself breaks more the longer it is. L∞ alone:
        a single step of the other norms loses most of its length at the box.

        Twenty points alone would accuse honest networks: where robustness ends they curve, and one long step misses (on
        digits, a network trained by PGD for 0.2 keeps 51 % under FGSM of 0.3, and 8 % under PGD). Catastrophic
        overfitting is robustness to FGSM at its full length and not to shorter steps (Kim et al. 2021, AAAI): from ε/2
        to ε, FGSM gains less than half of what PGD is ahead.
        """
        if self.probes.threat.norm != "linf":
            return not_run("overfitting", "Overfitting to FGSM is only measured in linf.")
        value, measured = self._difference(self.fgsm(), self.pgd())
        gain = self.robust_share(self.probes.fgsm(0.5)) - self.robust_share(self.probes.fgsm(1))
        measured += f"; FGSM of half the length leaves {as_points(gain)} more"
        meaning = "the network is robust to FGSM of this length but not to shorter steps: catastrophic overfitting"
        return self._share("overfitting", value, 0.2, measured, meaning, also=gain < value / 2)

    def margin(self) -> Check:
        """PGD on the margin leaves at most 5 points less than PGD on cross-entropy, which is given ten starts.

        With one start each, networks of small logits differ by luck: honest ones of TRADES on digits by 4 to 11 points
        (n = 430), and by -2 to 5 against ten starts. Where the scale of the logits masks, more starts do not help.
        """
        ce = self.probes.pgd(STEPS, "ce") | self.probes.restarts(RESTARTS - 1, "ce")
        several = self.probe_result(f"pgd-{STEPS} on cross-entropy from {RESTARTS} starts", ce)
        margin = self.probe_result(f"pgd-{STEPS} on the margin from one", self.probes.pgd(STEPS, "margin"))
        value, measured = self._difference(several, self.recorded("cw_100", "cw_linf") or margin)
        meaning = "cross-entropy is masked by the scale of the logits, and robust accuracy under it is too high"
        return self._share("margin", value, 0.05, measured, meaning)

    def stronger_attacks(self) -> Check:
        """More steps, ten starts, the margin, and the margin to one wrong class after another (`AttackProbes.targets`)
        together break at most eight points more than PGD and all attacks so far.

        Ours: on digits and MNIST at 14×14 (250 and 300 images, PGD-100) it is 3 to 7 points for networks of PGD-AT,
        TRADES and MART, 10 to 15 for AIT and Feature Scattering, which AutoAttack takes apart, 7 and 10 for BAT, and 13
        for a small network of TRADES whose logits hardly differ. Honest or not, PGD alone is no figure for those.
        """
        k, objective = self.probes.steps, self.probes.threat.objective
        pgd = self.probes.pgd(k, objective)
        stronger = self.probes.pgd(2 * k, objective) | self.probes.restarts(RESTARTS - 1, "ce")
        stronger = stronger | self.probes.pgd(STEPS, "margin") | self.probes.targets()
        value = float((stronger & ~pgd & ~self.union()[1]).sum()) / self.n
        measured = f"More steps, starts and targets break {as_points(value)} more than PGD-{k} and all recorded attacks"
        meaning = "the attacks that were run are weak on this network; evaluate it with eval=auto"
        return self._share("stronger attacks", value, 0.08, measured, meaning)

    def radius(self) -> Check:
        """Independent PGD-20 at 0, ε/4, ε/2, ε, 2ε, 4ε: no larger radius leaves τ more than a smaller one."""
        right = float((self.outputs.logits.argmax(dim=1) == self.outputs.labels).sum()) / self.n
        shares = [right, *(self.robust_share(self.probes.radius(multiple)) for multiple in RADII)]
        value = max(later - earlier for at, later in enumerate(shares) for earlier in shares[:at])
        radii = f"0, {', '.join(f'{self.probes.threat.eps * multiple:.3g}' for multiple in RADII)}"
        listed = ", ".join(f"{100 * share:.1f}" for share in shares)
        measured = f"Robust accuracy under PGD-{STEPS} at eps {radii}: {listed} %"
        return self._share("radius", value, TAU, measured, "accuracy must not rise with eps, so the attack is broken")

    def noise(self) -> Check:
        """Uniform noise breaks at most τ of the examples, beyond what gradients break."""
        tried, broken = self.union("noise")
        attacks = f"uniform noise ({DRAWS} draws, and recorded attacks)"
        return self._beyond_gradients("noise", TAU, tried | self.probes.mask, broken | self.probes.noise(), attacks)

    def black_box(self, access: str, share: float) -> Check:
        """Attacks without gradients of this network break at most `share` beyond what gradients break."""
        tried, broken = self.union(access)
        if not tried.any():
            advice = {"queries": "run square or spsa", "transfer": "run a transfer attack"}[access]
            return not_run(access, f"No attack by {access} was run; {advice} to compare it with gradient attacks.")
        names = ", ".join(name for name, result in self.results.items() if result.access == access)
        return self._beyond_gradients(access, share, tried, broken, names)

    def _share(self, name: str, value: float, share: float, measured: str, meaning: str, also: bool = True) -> Check:
        """A check of a share of the audit's examples."""
        return threshold_check(name, value, allowed_share(share, self.n), measured, meaning, also)

    def _difference(self, one: AttackResult, other: AttackResult) -> tuple[float, str]:
        """Robust accuracy under `one` minus that under `other`, of the examples that both tried, and a sentence."""
        both = one.tried & other.tried & self.clean
        n = int(both.sum())
        first, second = (float((both & ~result.broken).sum()) / n for result in (one, other))
        names = f"under {one.name} and {as_percent(second)} under {other.name}"
        return first - second, f"Robust accuracy is {as_percent(first)} {names} (n = {n})"

    def _beyond_gradients(self, name: str, share: float, tried: Tensor, broken: Tensor, attacks: str) -> Check:
        """The share that attacks without gradients break and gradient attacks do not. PGD-100 on the margin from five
        starts tries the examples in question first, so that a weak white-box attack is not called masking.

        A share of the examples that both kinds tried, the audit's own probes included. An attack that ran only on what
        was still robust counts as having tried the examples that were broken before.
        """
        white_tried, white_broken = self.union("gradient", "features")
        tried = tried if bool((tried & white_broken).any()) else tried | white_broken
        both = tried & (white_tried | self.probes.mask)
        beyond = both & broken & ~white_broken & ~self.probes.broken
        rows = beyond.nonzero().flatten()
        rows = rows[stratified_subset(self.probes.images.y.cpu()[rows], self.n)]
        sample = torch.zeros_like(beyond).index_fill_(0, rows, True)
        n = int(both.sum())
        threshold, value = allowed_share(share, n), float(beyond.sum()) / n
        if value > threshold:
            robust = sample & ~self.probes.strong_pgd(sample)
            value *= float(robust.sum()) / float(sample.sum())
        count = int((both & broken).sum())
        sentence = f"Of {n} images {attacks} breaks {count}; {as_points(value)} are broken by no gradient attack"
        return threshold_check(name, value, threshold, sentence, "gradients are masked")
