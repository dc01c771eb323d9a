"""The figures that a run's page opens with: clean, worst case, audit, best against last, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atbench.reporting.columns import attack_signature
from atbench.reporting.document import Card, Cards
from atbench.reporting.headline import ASK_RAND, Headline, compute_headline
from atbench.reporting.results import EvaluationRecord, attack_names
from atbench.reporting.run_folder import RunFolder
from atbench.reporting.wording import NOTHING, duration, interval, norm_name, percent, points, short_eps


def run_cards(run: RunFolder, evaluations: Sequence[EvaluationRecord]) -> Cards:
    """Five cards; large is the first checkpoint, the lines name the others."""
    worst = [compute_headline(run.all_evaluations[each.path.stem]) for each in evaluations]
    return Cards(
        (
            _clean(evaluations),
            _worst_case(evaluations, worst),
            _audit(evaluations),
            _gap(run, evaluations, worst),
            _cost(run, evaluations[0]),
        )
    )


def _clean(evaluations: Sequence[EvaluationRecord]) -> Card:
    first, *others = evaluations
    epoch = "" if first.epoch is None else f", epoch {first.epoch}"
    lines = (interval(first.clean.low, first.clean.high), f"checkpoint {first.checkpoint}{epoch}")
    return Card("Clean accuracy", percent(first.clean.value), (*lines, *_others(others, [e.clean for e in others])))


def _worst_case(evaluations: Sequence[EvaluationRecord], worst: Sequence[Headline]) -> Card:
    first, accuracy = evaluations[0], worst[0].accuracy
    if accuracy is None:
        return Card("Worst case", NOTHING, (ASK_RAND,), "bad")
    names = dict.fromkeys(name for member in worst[0].members for name in attack_names(member.record))
    norm, eps = first.threat
    of = f"{first.n:,}" if first.n == first.of else f"{first.n:,} of {first.of:,}"
    lines = (
        interval(accuracy.low, accuracy.high),
        ", ".join(names) or "no attack",
        f"{norm_name(norm)}, ε = {short_eps(eps)}; {of} {first.split} examples",
    )
    return Card(
        "Worst case",
        percent(accuracy.value),
        (*lines, *_others(evaluations[1:], [each.accuracy for each in worst[1:]])),
    )


def _others(evaluations: Sequence[EvaluationRecord], accuracies: Sequence[Any]) -> list[str]:
    return [f"{e.checkpoint}: {percent(a.value if a else None)}" for e, a in zip(evaluations, accuracies, strict=True)]


def _audit(evaluations: Sequence[EvaluationRecord]) -> Card:
    audited = [each for each in evaluations if each.audit["checks"]]
    if not audited:
        return Card("Audit", "not audited", ("eval.audit=250 runs the checks",))
    verdicts = [check for each in audited for check in each.audit["checks"] if check["verdict"] != "not run"]
    flags = list(dict.fromkeys(check["name"] for check in verdicts if check["verdict"] == "flag"))
    untrusted = [each.checkpoint for each in audited if not each.audit["trusted"]]
    lines = (f"{len(verdicts)} checks ran", *([f"flagged: {', '.join(flags)}"] if flags else []))
    value = f"{len(flags)} flag{'s' if len(flags) > 1 else ''}" if flags else "no flag"
    return Card("Audit", value, (*lines, *([f"not trusted: {', '.join(untrusted)}"] if untrusted else [])),
                "bad" if untrusted else "good")  # fmt: skip


def _gap(run: RunFolder, evaluations: Sequence[EvaluationRecord], worst: Sequence[Headline]) -> Card:
    """Best − last: of the worst cases where both were attacked alike, else under PGD on the held-out images."""
    gaps = [row for row in run.rows if row.get("gap") is not None]
    held_out = [(row["epoch"], row["val"]["pgd"]) for row in run.rows if "pgd" in row.get("val", {})]
    chosen = next((row for row in gaps if row["epoch"] == evaluations[0].epoch), None)
    lines = [f"trained on − held out: {points(chosen['gap'])} at epoch {chosen['epoch']}"] if chosen else []
    accuracies = [each.accuracy for each in worst]
    alike = len({(attack_signature(each), each.n) for each in evaluations}) == 1
    if len(evaluations) == 2 and alike and accuracies[0] and accuracies[1]:
        drop = accuracies[0].value - accuracies[1].value
        return Card("Best − last, points", points(drop), ("worst case (robust overfitting)", *lines))
    best = [value for epoch, value in held_out if epoch == evaluations[0].epoch]
    if best:
        where = f"PGD, {run.rows[-1].get('val', {}).get('n', '')} held-out images, epochs {evaluations[0].epoch} and "
        return Card("Best − last, points", points(best[0] - held_out[-1][1]), (f"{where}{held_out[-1][0]}", *lines))
    return Card("Best − last, points", NOTHING, ("one checkpoint",))


def _cost(run: RunFolder, first: EvaluationRecord) -> Card:
    record = first.record
    passes = f"{record['forward_passes']:,} forward and {record['gradient_passes']:,} gradient passes"
    evaluation = (f"evaluation {duration(record['seconds'])}:", passes)
    if run.train_seconds is None:
        return Card("Cost", duration(record["seconds"]), evaluation)
    return Card("Cost of training", duration(run.train_seconds), (f"{len(run.rows)} epochs", *evaluation))
