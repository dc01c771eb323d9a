"""Report of one run as a document: settings, checkpoint selection, accuracies, audit, figures."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from atbench.config.tree import select
from atbench.reporting import audit_report, plots
from atbench.reporting.agreement import record_disagreements
from atbench.reporting.collapse_report import collapse_notices, watch_figure
from atbench.reporting.columns import attack_signature
from atbench.reporting.document import Block, Cell, Code, Document, Facts, Figure, Heading, Notice, Paragraph, Table
from atbench.reporting.document import table as make_table
from atbench.reporting.evaluation_figures import curve_figures, example_figure
from atbench.reporting.evaluation_report import accuracy_blocks, accuracy_cell, class_blocks, merge_equal_evaluations
from atbench.reporting.headline import ASK_RAND, compute_headline
from atbench.reporting.results import EvaluationRecord, bound_text
from atbench.reporting.run_cards import run_cards
from atbench.reporting.run_facts import attacked_facts, environment_facts, file_facts, threat_text, training_facts
from atbench.reporting.run_folder import RunFolder, is_run, read_run
from atbench.reporting.wording import (
    NO_PROOF,
    NOTHING,
    accuracy_text,
    both_forms,
    norm_name,
    options_text,
    percent,
    points,
)
from atbench.runs.run_dir import record_folders

ADAPTED = {"eps_mean": "Radii of the training examples", "strength": "Stage of the curriculum"}


def build_run_report(run: RunFolder) -> Document:
    evaluations = merge_equal_evaluations(list(run.evaluations.values()))
    blocks: list[Block] = [*_alarms(run, evaluations), run_cards(run, evaluations), *_notices(run, evaluations)]
    blocks += [Heading("Curves"), *_training(run), *curve_figures(evaluations), *_more_training(run)]
    blocks += [*example_figure(evaluations[0]), Heading("Accuracy"), _checkpoints(run, evaluations)]
    blocks += [*_all_evaluations(run), *accuracy_blocks(evaluations)]
    blocks += [Heading("Audit"), *audit_report.audit_blocks(evaluations), *class_blocks(evaluations)]
    blocks += [Heading("Settings", folded=True), Facts(training_facts(run) if run.trained else attacked_facts(run))]
    blocks += [Heading("Checkpoint selection", folded=True), *_selection(run)] if run.trained else []
    blocks += [Heading("Provenance", folded=True), Facts(environment_facts(run)), *_stages(run)]
    blocks += [
        Heading("Reproduce"),
        Code(rerun_command(run)),
        Heading("Files"),
        Facts(file_facts(run.path), linked=True),
    ]
    title = f"{run.name('method')} on {run.name('dataset')}, seed {run.seed}"
    return Document(title, tuple(blocks), f"{threat_text(run)} · {run.name('model')} · {run.status_line}")


def rerun_command(run: RunFolder) -> str:
    """The command that repeats the run, as it was typed."""
    typed = [str(word) for word in run.typed.get("argv", ())]
    if typed and Path(typed[0]).name in ("atbench", "__main__.py"):
        typed = typed[1:]
    return shlex.join(["atbench", *typed]) if typed else "# as_typed.yaml has no command"


def _alarms(run: RunFolder, evaluations: list[EvaluationRecord]) -> Iterator[Block]:
    """What puts the accuracies in doubt."""
    yield from audit_report.untrusted_notices(evaluations)
    yield from collapse_notices(run.watch)
    yield from (Notice(text, grave=True) for e in evaluations for text in record_disagreements(e))


def _notices(run: RunFolder, evaluations: list[EvaluationRecord]) -> Iterator[Block]:
    for words in dict.fromkeys(bound_text(e.record) for e in evaluations if e.bound == "upper"):
        yield Notice(f"{words[0].upper()}{words[1:]}. {NO_PROOF}")
    if len({attack_signature(evaluation) for evaluation in evaluations}) > 1:
        yield Notice("The checkpoints were attacked differently: their worst cases are not comparable.")
    if len({evaluation.n for evaluation in evaluations}) > 1:
        text = "The checkpoints were evaluated on different numbers of images: their accuracies are not comparable."
        yield Notice(text)
    if run.state != "done":
        yield Notice(f"This run is not finished: {run.status_line}")
    for partial in (each for place in record_folders(run.path) for each in sorted(place.glob("*.partial.json"))):
        name = partial.relative_to(run.path)
        yield Notice(f"An evaluation is unfinished ({name}); `atbench eval` resumes it")
    yield from (Notice(f"Warning: {text}") for text in dict.fromkeys(text for e in evaluations for text in e.warnings))


def _checkpoints(run: RunFolder, evaluations: list[EvaluationRecord]) -> Table:
    """The figures to quote of each checkpoint."""
    rows: list[list[Cell | str]] = []
    for each in evaluations:
        worst = compute_headline(run.all_evaluations[each.path.stem])
        figures = (each.clean, worst.accuracy, each.eight_bit if worst.accuracy else None)
        epoch = Cell(NOTHING if each.epoch is None else str(each.epoch), each.epoch)
        of = f"{each.n:,}" if each.n == each.of else f"{each.n:,} of {each.of:,}"
        under = worst.basis if worst.accuracy else ASK_RAND
        rows.append([each.checkpoint, epoch, *map(accuracy_cell, figures), under, _ball(each), each.split])
        rows[-1].append(Cell(of, each.n))
    columns = ("checkpoint", "epoch", "clean", "worst case", "8-bit images", "attacks", "threat", "split", "examples")
    return make_table(columns, rows, "checkpoints")


def _all_evaluations(run: RunFolder) -> Iterator[Block]:
    """Every evaluation of every checkpoint, if any has more than one."""
    if all(len(found) == 1 for found in run.all_evaluations.values()):
        return
    yield Heading("Evaluations", part=True)
    yield Paragraph(
        "The headline is the worst case, example by example, over the evaluations on the most images in the threat of "
        "the first of them. Evaluations on fewer images are listed here only. The next sections are of the strongest."
    )
    rows = [
        (
            *(name, each.name or NOTHING, _ball(each), each.basis),
            *(accuracy_cell(each.clean), accuracy_cell(each.headline)),
            Cell(f"{each.n:,} of {each.of:,}", each.n),
        )
        for name, found in run.all_evaluations.items()
        for each in found
    ]
    yield make_table(("checkpoint", "evaluation", "threat", "attacks", "clean", "worst case", "n"), rows, "evaluations")


def _ball(evaluation: EvaluationRecord) -> str:
    name, eps = evaluation.threat
    return f"{norm_name(name)}, ε = {both_forms(eps)}"


def _selection(run: RunFolder) -> Iterator[Block]:
    selection = select(run.config, "train.selection")
    facts = [("rule", options_text(selection))] if isinstance(selection, dict) and selection else []
    for name, evaluation in run.evaluations.items():
        row = next((row for row in run.rows if row["epoch"] == evaluation.epoch), None)
        held_out = (row or {}).get("val") or {}
        if row and "pgd" in held_out:
            gap = f", gap {points(row['gap'])} points" if row.get("gap") is not None else ""
            figures = f"clean {percent(held_out.get('clean'))}, PGD {percent(held_out['pgd'])}, n = {held_out.get('n')}"
            figures += f", all norms {percent(held_out['union'])}" if "union" in held_out else ""
            facts.append((f"{name}: epoch {evaluation.epoch} of {row['epochs']}", f"held out: {figures}{gap}"))
        else:
            facts.append((name, f"epoch {evaluation.epoch}"))
    yield Facts(tuple(facts))
    for name, words in (("loss", "Training loss"), ("gap", "Trained on − held out, under PGD")) if run.rows else ():
        drawing = plots.draw_over_epochs(name, {run.name("method"): [run.rows]})
        yield Figure(name, drawing, f"{words}; dotted: the epoch of the best checkpoint.")


def _training(run: RunFolder) -> Iterator[Block]:
    """The training curve: robust overfitting is where held out falls below its own best."""
    if run.rows:
        caption = "Training. Bands: 95 % interval of the held-out figures; dotted: the epoch of the best checkpoint."
        yield Figure("training", plots.draw_over_epochs("training", {run.name("method"): [run.rows]}), caption)


def _more_training(run: RunFolder) -> Iterator[Block]:
    """The watch for collapses, and what the method adapts."""
    yield from watch_figure(run.watch)
    for name in plots.adapted(run.rows):
        radius = name == "eps_mean"
        caption = f"{ADAPTED.get(name, name)} over training. Band: ± one standard deviation; dotted: ε of the threat."
        caption = caption if radius else f"{ADAPTED.get(name, name)} over training."
        eps = select(run.config, "attack.eps") if radius else None
        yield Figure(f"adapted_{name}", plots.draw_adapted(name, {"": run.rows}, eps), caption)


def _stages(run: RunFolder) -> Iterator[Block]:
    folders = sorted(path for path in (run.path / "stages").glob("*") if is_run(path))
    if folders:
        yield Heading("Stages", part=True)
        yield Paragraph("Pretraining runs of the method, each in a folder under stages/.")
        yield Facts(tuple((stage.name, _stage_line(read_run(stage))) for stage in folders))


def _stage_line(stage: RunFolder) -> str:
    """How a stage ended, and of a teacher what it was before it taught."""
    if (measured := stage.status.get("teacher")) is None:
        return stage.status_line
    clean, pgd = (accuracy_text(measured[key]) for key in ("clean", "pgd"))
    return (
        f"{stage.status_line}; a teacher: clean {clean}, PGD-{measured['steps']} {pgd}, n = {measured['n']}, held out"
    )
