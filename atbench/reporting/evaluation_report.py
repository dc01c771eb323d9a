"""Evaluations as blocks of a report: attacks, PGD over k and ε, other norms, classes, confidence, distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from atbench.evaluation.eval_results import robust_after
from atbench.reporting.document import Block, Cell, Facts, Heading, Paragraph, Table, table
from atbench.reporting.evaluation_figures import confusion_figures, reliability_figures
from atbench.reporting.members_report import transfer_blocks
from atbench.reporting.rejection_report import rejection_blocks
from atbench.reporting.results import Accuracy, AttackFigures, EvaluationRecord, attack_names
from atbench.reporting.unforeseen_report import unforeseen_blocks
from atbench.reporting.wording import (
    NOTHING,
    both_forms,
    duration,
    norm_name,
    number_text,
    percent,
    short_eps,
    with_interval,
)

Row = Sequence[Cell | str]

_MOST_ROWS = 20  # of a table over classes: more are not read


def merge_equal_evaluations(evaluations: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """Evaluations with equal content as one, named `best = last`: the last epoch is often the best one."""
    merged: list[tuple[dict[str, Any], EvaluationRecord]] = []
    for evaluation in evaluations:
        names = ("checkpoint", "outcomes", "examples")
        content = {key: value for key, value in evaluation.record.items() if key not in names}
        for index, (other, first) in enumerate(merged):
            if other == content:
                merged[index] = other, replace(first, checkpoint=f"{first.checkpoint} = {evaluation.checkpoint}")
                break
        else:
            merged.append((content, evaluation))
    return [evaluation for _, evaluation in merged]


def accuracy_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """The blocks under the heading "Accuracy"."""
    yield Heading("Attacks", part=True)
    yield Paragraph(
        "Alone: accuracy under this attack by itself. After: accuracy under it and every attack above it. Broke as "
        "8-bit: still misclassified when every pixel is one of 256 levels. Brackets: 95 % interval."
    )
    yield _attacks(evaluations)
    if settings := _settings(evaluations):
        yield Facts(settings)
    yield from _sweeps([evaluation for evaluation in evaluations if evaluation.steps])
    yield from _norms(evaluations)
    yield from transfer_blocks(evaluations)
    yield from unforeseen_blocks(evaluations)
    yield from rejection_blocks(evaluations)
    yield from _distances(evaluations)


def class_blocks(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Classes, confusions and confidence, in parts that the page folds."""
    yield from _folded("Classes", [*_classes(evaluations), *confusion_figures(evaluations)])
    yield from _folded("Calibration", [*_calibration(evaluations), *reliability_figures(evaluations)])


def _folded(title: str, blocks: Sequence[Block]) -> Iterator[Block]:
    if blocks:
        yield from (Heading(title, folded=True), *blocks)


def accuracy_text(accuracy: Accuracy) -> str:
    """`61.0 % [56.4, 65.4]`."""
    return with_interval(accuracy.value, accuracy.low, accuracy.high)


def accuracy_cell(accuracy: Accuracy | None) -> Cell:
    """`61.0 % [56.4, 65.4]`, sorted by the value."""
    return Cell(NOTHING) if accuracy is None else Cell(accuracy_text(accuracy), accuracy.value)


def _count(value: int | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:,}", value)


def _attacks(evaluations: Sequence[EvaluationRecord]) -> Table:
    columns = ("checkpoint", "attack", "access", "run on", "broke", "broke as 8-bit", "alone", "after", "forwards",
               "gradients", "time")  # fmt: skip
    rows: list[Row] = []
    for evaluation in evaluations:
        name, every, clean = evaluation.checkpoint, _count(evaluation.n), accuracy_cell(evaluation.clean)
        rows.append((name, "none", "", every, NOTHING, NOTHING, clean, clean, NOTHING, NOTHING, NOTHING))
        rows += [(name, *_sweep_row(evaluation))] if evaluation.steps else []
        rows += [(name, *_attack_row(attack)) for attack in evaluation.attacks]
    return table(columns, rows, "attacks")


def _settings(evaluations: Sequence[EvaluationRecord]) -> tuple[tuple[str, str], ...]:
    """Settings of each attack; once where all checkpoints were attacked alike."""
    checkpoints: dict[tuple[str, str], list[str]] = {}
    for evaluation in evaluations:
        own = [(attack_names(evaluation.record)[0], _sweep_words(evaluation))] if evaluation.steps else []
        for pair in own + [(attack.name, attack.words or "none") for attack in evaluation.attacks]:
            checkpoints.setdefault(pair, []).append(evaluation.checkpoint)
    names = [name for name, _ in checkpoints]
    return tuple(
        (f"{name} ({', '.join(of)})" if names.count(name) > 1 else name, words)
        for (name, words), of in checkpoints.items()
    )


def _sweep_words(evaluation: EvaluationRecord) -> str:
    a = evaluation.attack
    restarts = f"{a['restarts']} restart{'s' if a['restarts'] != 1 else ''}"
    words = f"step {both_forms(a['step_size'])}, {a['start']} start, {restarts}, objective {a['objective']}"
    return f"{words}; cost of all radii{' and of the other norms' if evaluation.norms else ''}"


def _attack_row(attack: AttackFigures) -> Iterator[Cell | str]:
    yield from (attack.name, attack.access)
    yield from (_count(attack.tried), _count(attack.broken), _count(attack.broken_eight_bit))
    yield from (
        accuracy_cell(attack.alone),
        accuracy_cell(attack.after),
        _count(attack.forwards),
        _count(attack.gradients),
    )
    yield Cell(duration(attack.seconds), attack.seconds)


def _sweep_row(evaluation: EvaluationRecord) -> Iterator[Cell | str]:
    """PGD with all of its steps; its cost includes that of its other radii and norms."""
    record, only = evaluation.record, not evaluation.attacks
    right = round(evaluation.clean.value * evaluation.n)
    strongest = evaluation.steps[max(evaluation.steps)]
    rounded = right - round(evaluation.eight_bit.value * evaluation.n) if only else None
    yield from (attack_names(record)[0], "gradient", _count(right))
    yield from (_count(right - round(strongest.value * evaluation.n)), _count(rounded))
    yield from (accuracy_cell(strongest), accuracy_cell(strongest))
    rest = record.get("reject") or {}
    spent = [
        sum(getattr(attack, key) for attack in evaluation.attacks) + rest.get(key, 0)
        for key in ("forwards", "gradients", "seconds")
    ]
    yield _count(record["forward_passes"] - evaluation.n - spent[0])
    yield _count(record["gradient_passes"] - spent[1])
    seconds = record["seconds"] - spent[2]
    yield Cell(duration(max(seconds, 0.0)), seconds)


def _sweeps(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """A table k × ε of each sweep."""
    if evaluations:
        yield Heading("PGD over steps k and radius ε", part=True)
        yield Paragraph(
            "An example counts as broken at (k, ε) if any iterate up to k, at ε or at a smaller radius of the table, "
            f"was misclassified. {NOTHING}: not run with k steps at this radius. Step sizes are proportional to ε."
        )
    for evaluation in evaluations:
        cells = _surface(evaluation)
        radii = sorted({eps for _, eps in cells})
        rows: list[Row] = [
            (evaluation.checkpoint, Cell(str(k), k), *(accuracy_cell(cells.get((k, eps))) for eps in radii))
            for k in sorted({k for k, _ in cells})
        ]
        columns = ("checkpoint", "k", *(f"ε = {short_eps(eps)}" for eps in radii))
        yield table(columns, rows, f"sweep-{evaluation.path.stem}")


def _surface(evaluation: EvaluationRecord) -> dict[tuple[int, float], Accuracy]:
    """Accuracy by (k, ε), from the record and its masks."""
    main, plan = evaluation.threat[1], evaluation.record["plan"]
    cells = {(k, main): accuracy for k, accuracy in evaluation.steps.items()}
    cells |= {(k, eps): accuracy for eps, k, accuracy in evaluation.eps if eps}
    arrays = evaluation.outcomes or {}
    for eps, codes in zip(arrays.get("surface_eps", ()), arrays.get("surface", ()), strict=True):
        for k in evaluation.steps:
            if k <= plan["eps_steps"]:
                cells.setdefault((k, float(eps)), Accuracy.of(robust_after(codes, k)))
    return cells


def _norms(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    rows: list[Row] = []
    for evaluation in evaluations:
        if not evaluation.norms:
            continue
        name = evaluation.checkpoint
        rows.append((name, _ball(*evaluation.threat), evaluation.basis, accuracy_cell(evaluation.robust)))
        for norm, (eps, k, accuracy) in evaluation.norms.items():
            rows.append((name, _ball(norm, eps), f"PGD-{k}", accuracy_cell(accuracy)))
        rows.append((name, "all of these", "union", accuracy_cell(_union(evaluation))))
    text = "Union: right under all of these threats, example by example."
    yield from _section("Other norms", text, ("checkpoint", "threat", "attack", "accuracy"), rows)


def _section(title: str, text: str, columns: Sequence[str], rows: Sequence[Row]) -> Iterator[Block]:
    """A heading, a paragraph and a table; nothing where there is no row."""
    if rows:
        name = title.lower().replace(" ", "-")
        yield from (Heading(title, part=True), Paragraph(text), table(columns, rows, name))


def _ball(name: str, eps: float) -> str:
    return f"{norm_name(name)}, ε = {both_forms(eps) if name == 'linf' else number_text(eps)}"


def _union(evaluation: EvaluationRecord) -> Accuracy | None:
    """Accuracy under the main threat and in every other norm; None without the masks."""
    arrays = evaluation.outcomes or {}
    names = [f"broken_at_{name}" for name in evaluation.norms]
    if not {"robust", *names} <= set(arrays):
        return None
    left = arrays["robust"]
    for name in names:
        left = left & robust_after(arrays[name])
    return Accuracy.of(left)


def _classes(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    """Accuracy of each class, or of the worst classes if there are many."""
    rows: list[Row] = []
    lines = []
    for evaluation in evaluations:
        classes = evaluation.record["classes"]
        seen = [entry for entry in classes["classes"] if entry["n"]]
        if classes["worst"] is None:
            continue
        worst = classes["worst"]["class"]
        figure = accuracy_text(Accuracy(*(classes["worst"][key] for key in ("accuracy", "low", "high"))))
        more = f" The {_MOST_ROWS} worst of {len(seen)} classes are listed." if len(seen) > _MOST_ROWS else ""
        lines.append(f"{evaluation.checkpoint}: the worst class under attack is {worst}, {figure}.{more}")
        shown = sorted(seen, key=lambda entry: entry["accuracy"])[:_MOST_ROWS] if more else seen
        rows += [(evaluation.checkpoint, *_class_row(evaluation, entry)) for entry in shown]
    text = " ".join([*lines, "Its interval does not account for selecting the worst class."])
    if rows:
        yield from (Paragraph(text), table(("checkpoint", "class", "n", "clean", "under attack"), rows, "classes"))


def _class_row(evaluation: EvaluationRecord, entry: dict[str, Any]) -> Iterator[Cell | str]:
    names = [each["class"] for each in evaluation.record["classes"]["classes"]]
    arrays = evaluation.outcomes or {}
    clean = None
    if {"clean", "label"} <= set(arrays):
        clean = Accuracy.of(arrays["clean"][arrays["label"] == names.index(entry["class"])])
    yield from (str(entry["class"]), _count(entry["n"]), accuracy_cell(clean))
    yield accuracy_cell(Accuracy(entry["accuracy"], entry["low"], entry["high"]))


def _calibration(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    rows: list[Row] = []
    for evaluation in evaluations:
        for kind, calibration in evaluation.record["calibration"].items():
            if calibration is not None:
                values = [100 * calibration["confidence"], 100 * calibration["accuracy"], 100 * calibration["ece"]]
                cells = [Cell(f"{value:.1f}", value) for value in values]
                cells += [Cell(f"{calibration[key]:.3f}", calibration[key]) for key in ("nll", "brier")]
                rows.append((evaluation.checkpoint, f"{kind} images", *cells))
    text = (
        "ECE: expected calibration error over 15 bins, in points; NLL in nats; Brier score in [0, 2]. Adversarial: "
        "each example's misclassified image, else the last attack's; the clean image if it is misclassified."
    )
    columns = ("checkpoint", "on", "mean confidence, %", "accuracy, %", "ECE", "NLL", "Brier")
    if rows:
        yield from (Paragraph(text), table(columns, rows, "calibration"))


def _distances(evaluations: Sequence[EvaluationRecord]) -> Iterator[Block]:
    rows: list[Row] = []
    for evaluation in evaluations:
        for attack in evaluation.attacks:
            if (far := attack.distance) is not None:
                quartiles = [_distance(far, key) for key in ("lower_quartile", "median", "upper_quartile")]
                unbroken = Cell(percent(far["unbroken"]["accuracy"]), far["unbroken"]["accuracy"])
                of = norm_name(attack.settings.get("norm", evaluation.threat[0]))
                rows.append((evaluation.checkpoint, attack.name, of, _count(far["n"]), *quartiles, unbroken))
    text = "Distance to the nearest misclassified image found, an upper bound. Never misclassified counts as ∞."
    columns = ("checkpoint", "attack", "norm", "n", "lower quartile", "median", "upper quartile", "never broken")
    yield from _section("Minimum-norm distances", text, columns, rows)


def _distance(far: Mapping[str, Any], key: str) -> Cell:
    value = far[key]
    return Cell("∞" if key in far["infinite"] else NOTHING) if value is None else Cell(f"{value:.4g}", value)
