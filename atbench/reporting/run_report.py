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
from atbench.reporting.document import Block, Cell, Code, Document, Facts, Figure, Heading, Notice, Paragraph, table
from atbench.reporting.evaluation_figures import evaluation_figures
from atbench.reporting.evaluation_report import accuracy_blocks, accuracy_cell, accuracy_text, merge_equal_evaluations
from atbench.reporting.headline import ASK_RAND, compute_headline
from atbench.reporting.results import EvaluationRecord, bound_text
from atbench.reporting.run_folder import RunFolder, is_run, read_run
from atbench.reporting.wording import (
    NO_PROOF,
    NOTHING,
    both_forms,
    duration,
    file_size,
    norm_name,
    number_text,
    options_text,
    percent,
    points,
)
from atbench.runs.run_dir import record_folders

# Files of a run folder and their descriptions.
_FILES = {
    "report.html": "this report as one self-contained page",
    "report.md": "this report as Markdown",
    "config.yaml": "the resolved configuration",
    "as_typed.yaml": "what was typed",
    "environment.json": "versions, device, threads, seeds, checksums",
    "status.json": "state, exit code, times",
    "metrics.jsonl": "one row an epoch, and those of the watch for collapses",
    "checkpoints/best.pt": "the checkpoint of the best epoch; torch.load(weights_only=True) opens it",
    "checkpoints/last.pt": "the checkpoint of the last epoch, to resume from",
}
_RECORDS = {
    "json": "the evaluation of the checkpoint",
    "npz": "its outcomes, example by example",
    "examples.npz": "its adversarial images, for `atbench eval verify=`",
    "partial.json": "results of an unfinished evaluation so far",
}
_FOLDERS = {
    "evaluation/parts": "cached results of an unfinished evaluation",
    "evaluation/earlier": "evaluations that were replaced by later ones",
    "pictures": "the figures of this report",
    "stages": "pretraining runs of the method",
    "wandb": "the W&B mirror",
}


def build_run_report(run: RunFolder) -> Document:
    evaluations = merge_equal_evaluations(list(run.evaluations.values()))
    blocks = [*_headline(run, evaluations), Heading("Settings")]
    blocks += [Facts(_what_ran(run) if run.trained else _what_was_attacked(run))]
    blocks += [Heading("Checkpoint selection"), *_selection(run)] if run.trained else []
    blocks += [
        Heading("Accuracy"),
        *_all_evaluations(run),
        *accuracy_blocks(evaluations),
        Heading("Audit"),
        *audit_report.audit_blocks(evaluations),
    ]
    blocks += [Heading("Figures"), *evaluation_figures(evaluations)]
    blocks += _training(run)
    blocks += [Heading("Environment"), Facts(_environment(run)), Heading("Reproduce"), Code(rerun_command(run))]
    blocks += [*_stages(run), Heading("Files"), Facts(_files(run.path))]
    return Document(f"{run.name('method')} on {run.name('dataset')}, seed {run.seed}", tuple(blocks))


def rerun_command(run: RunFolder) -> str:
    """The command that repeats the run, as it was typed."""
    typed = [str(word) for word in run.typed.get("argv", ())]
    if typed and Path(typed[0]).name in ("atbench", "__main__.py"):
        typed = typed[1:]
    return shlex.join(["atbench", *typed]) if typed else "# as_typed.yaml has no command"


def threat_text(run: RunFolder) -> str:
    """Norm and ε of training, ε in both forms."""
    attack = run.config.get("attack") or {}
    return f"{norm_name(attack.get('norm'))}, ε = {both_forms(attack.get('eps'))}"


def _headline(run: RunFolder, evaluations: list[EvaluationRecord]) -> Iterator[Block]:
    yield from audit_report.untrusted_notices(evaluations)
    yield from collapse_notices(run.watch)
    for evaluation in evaluations:
        epoch = "" if evaluation.epoch is None else f" (epoch {evaluation.epoch})"
        worst = compute_headline(run.all_evaluations[evaluation.path.stem])
        figure = worst.accuracy
        robust = f"robust {accuracy_text(figure)} under {worst.basis}" if figure else f"robust {NOTHING}: {ASK_RAND}"
        of = "" if evaluation.n == evaluation.of else f" (of {evaluation.of})"
        yield Paragraph(
            f"Checkpoint {evaluation.checkpoint}{epoch}: clean {accuracy_text(evaluation.clean)}, {robust} "
            f"({_ball(evaluation)}), on {evaluation.n}{of} examples of the {evaluation.split} split. "
            f"With 8-bit adversarial images: {accuracy_text(evaluation.eight_bit) if figure else NOTHING}."
        )
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
    yield from (Notice(text, grave=True) for e in evaluations for text in record_disagreements(e))
    yield from (Notice(f"Warning: {text}") for text in dict.fromkeys(text for e in evaluations for text in e.warnings))


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
    yield table(("checkpoint", "evaluation", "threat", "attacks", "clean", "worst case", "n"), rows)


def _ball(evaluation: EvaluationRecord) -> str:
    name, eps = evaluation.threat
    return f"{norm_name(name)}, ε = {both_forms(eps)}"


def _what_ran(run: RunFolder) -> tuple[tuple[str, str], ...]:
    train = run.config.get("train") or {}
    attack = run.config.get("attack") or {}
    plus = [
        f"{name} ({options_text(node or {})})".replace(" ()", "")
        for name, node in (run.config.get("plus") or {}).items()
    ]
    facts = [
        ("method", _with_options(run.name("method"), options_text(run.config.get("method") or {}))),
        ("formula", run.about("method", "formula")),
        ("paper", run.about("method", "paper")),
        ("data", _with_options(run.name("dataset"), run.about("dataset", "summary"))),
        ("model", _with_options(run.name("model"), options_text(run.config.get("model") or {}))),
        ("parameters", _thousands(run.environment.get("parameters"))),
        ("threat", threat_text(run)),
        ("attack in training", _with_options(run.name("attack"), _attack_options({**attack}))),
        ("plus", "; ".join(plus) or "none"),
        (
            "epochs, batch",
            f"{number_text(train.get('epochs'))}, {number_text(train.get('batch_size'))}" if train else None,
        ),
        *((key, _node(train[key])) for key in ("optimizer", "schedule", "precision", "extra_data") if train.get(key)),
        *((key.replace("_", " "), number_text(train[key])) for key in ("label_smoothing", "margin") if train.get(key)),
        ("state", run.status_line),
        ("training time", duration(run.train_seconds) if run.train_seconds is not None else None),
    ]
    return tuple((name, value) for name, value in facts if value)


def _what_was_attacked(run: RunFolder) -> tuple[tuple[str, str], ...]:
    facts = [
        ("network", _with_options(run.name("model"), options_text(run.config.get("model") or {}))),
        ("parameters", _thousands(run.environment.get("parameters"))),
        ("weights", str(run.config.get("checkpoint") or "its own")),
        ("data", _with_options(run.name("dataset"), run.about("dataset", "summary"))),
        ("threat", threat_text(run)),
        ("state", run.status_line),
    ]
    return tuple((name, value) for name, value in facts if value)


def _with_options(name: str, more: str | None) -> str:
    return f"{name}: {more}" if more else name


def _thousands(value: object) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _attack_options(attack: dict[str, object]) -> str:
    """Options of the training attack without norm and ε."""
    step = attack.get("step_size")
    rest = options_text({key: value for key, value in attack.items() if key not in ("norm", "eps", "step_size")})
    return ", ".join(part for part in (f"step {both_forms(step)}" if step is not None else "", rest) if part)


def _node(node: object) -> str:
    """The class name of a config node with its options."""
    if not isinstance(node, dict):
        return str(node)
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return " ".join(part for part in (name, options_text(node)) if part)


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


def _training(run: RunFolder) -> Iterator[Block]:
    if run.rows:
        caption = "Training. Bands: 95 % interval of the held-out figures; dotted: the epoch of the best checkpoint."
        yield Figure("training", plots.draw_training({run.name("method"): [run.rows]}), caption)
    yield from watch_figure(run.watch)
    if plots.has_adaptive_eps(run.rows):
        caption = "Radii of the training examples. Band: ± one standard deviation; dotted: ε of the threat."
        drawing = plots.draw_adaptive_eps(run.rows, select(run.config, "attack.eps"))
        yield Figure("adaptive_eps", drawing, caption)


def _environment(run: RunFolder) -> tuple[tuple[str, str], ...]:
    # Parameters and training time are under "Settings".
    known = {k: v for k, v in run.environment.items() if k not in ("parameters", "train_seconds") and v is not None}
    facts = [
        (key, options_text(value) if isinstance(value, dict) else number_text(value)) for key, value in known.items()
    ]
    if "seed" not in known and run.seed is not None:
        facts.append(("seed", str(run.seed)))
    for name, evaluation in run.evaluations.items():
        facts.append((f"weights ({name}), SHA-256", str(evaluation.record.get("weights_sha256"))))
        facts.append((f"test data ({name}), SHA-256", str(evaluation.record.get("data_sha256"))))
        facts.append((f"evaluated ({name}) with", options_text(evaluation.record.get("versions") or {})))
        passes, gradients = (_thousands(evaluation.record[key]) for key in ("forward_passes", "gradient_passes"))
        cost = f"{passes} forward and {gradients} gradient passes, {duration(evaluation.record['seconds'])}"
        facts.append((f"cost of evaluation ({name})", f"{cost}; seed {evaluation.attack['seed']}"))
    return tuple(facts)


def _stages(run: RunFolder) -> Iterator[Block]:
    folders = sorted(path for path in (run.path / "stages").glob("*") if is_run(path))
    if folders:
        yield Heading("Stages")
        yield Paragraph("Pretraining runs of the method, each in a folder under stages/.")
        yield Facts(tuple((stage.name, f"{read_run(stage).status_line}") for stage in folders))


def _files(folder: Path) -> tuple[tuple[str, str], ...]:
    """The files that exist, and the two reports, which are being written."""
    records = sorted(path.stem for path in (folder / "evaluation").glob("*.npz") if "." not in path.stem)
    known = _FILES | {f"evaluation/{name}.{kind}": what for name in records for kind, what in _RECORDS.items()}
    facts = []
    for name, what in known.items():
        if name.startswith("report."):
            facts.append((name, what))
        elif (folder / name).is_file():
            facts.append((name, f"{what} ({file_size((folder / name).stat().st_size)})"))
    facts += [(f"{name}/", what) for name, what in _FOLDERS.items() if (folder / name).is_dir() or name == "pictures"]
    return tuple(facts)
