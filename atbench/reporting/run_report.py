"""The report of one run as a document: what ran, how the checkpoint was chosen, every accuracy with its basis."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from atbench.reporting import plots
from atbench.reporting.document import Block, Cell, Code, Document, Facts, Figure, Heading, Notice, Paragraph, Table
from atbench.reporting.plots import Curve
from atbench.reporting.runs import Accuracy, Evaluation, RunFolder, is_run, lookup, read
from atbench.reporting.wording import (
    UPPER_BOUND,
    both_forms,
    duration,
    interval,
    norm,
    number,
    options,
    percent,
    points,
    size,
)

# What each file of a run folder is, in the order in which a reader would open them.
_FILES = {
    "report.html": "this report as one self-contained page",
    "report.md": "this report as Markdown",
    "config.yaml": "the resolved configuration",
    "as_typed.yaml": "what was typed",
    "environment.json": "versions, device, threads, seeds, checksums",
    "status.json": "state, exit code, times",
    "metrics.jsonl": "one row an epoch",
    "checkpoints/best.pt": "the checkpoint of the best epoch; torch.load(weights_only=True) opens it",
    "checkpoints/last.pt": "the checkpoint of the last epoch, to resume from",
    "evaluation/best.json": "the evaluation of the best checkpoint",
    "evaluation/best.npz": "its outcome for every example",
    "evaluation/last.json": "the evaluation of the last checkpoint",
    "evaluation/last.npz": "its outcome for every example",
    "pictures": "the figures of this report",
    "stages": "runs that the method asked for first",
    "wandb": "the W&B mirror",
}


def document(run: RunFolder) -> Document:
    """The report of a run that has at least one evaluation."""
    blocks = [*_headline(run), Heading("What ran"), Facts(_what_ran(run) if run.trained else _what_was_attacked(run))]
    blocks += [Heading("How the checkpoint was chosen"), *_selection(run)] if run.trained else []
    blocks += [Heading("Accuracy"), *_accuracies(run), *_figures(run)]
    blocks += [Heading("Made with"), Facts(_made_with(run)), Heading("Make it again"), Code(remake(run))]
    blocks += [*_stages(run), Heading("Files"), Facts(_files(run.path))]
    return Document(f"{run.name('method')} on {run.name('dataset')}, seed {run.seed}", tuple(blocks))


def remake(run: RunFolder) -> str:
    """The command that makes the run again, as it was typed."""
    typed = [str(word) for word in run.typed.get("argv", ())]
    if typed and Path(typed[0]).name in ("atbench", "__main__.py"):
        typed = typed[1:]
    return shlex.join(["atbench", *typed]) if typed else "# as_typed.yaml does not say what was typed"


def threat(run: RunFolder) -> str:
    """The ball that the run trained against, ε in both forms."""
    attack = run.config.get("attack") or {}
    return f"{norm(attack.get('norm'))}, ε = {both_forms(attack.get('eps'))}"


def _headline(run: RunFolder) -> Iterator[Block]:
    for evaluation in run.evaluations.values():
        robust = evaluation.steps[evaluation.strongest]
        epoch = "" if evaluation.epoch is None else f" (epoch {evaluation.epoch})"
        yield Paragraph(
            f"Checkpoint {evaluation.checkpoint}{epoch}: clean {_full(evaluation.clean)}, "
            f"PGD-{evaluation.strongest} {_full(robust)} on {evaluation.n} examples of the {evaluation.split} split."
        )
    if any(evaluation.bound == "upper" for evaluation in run.evaluations.values()):
        yield Notice(UPPER_BOUND[0].upper() + UPPER_BOUND[1:])
    if run.state != "done":
        yield Notice(f"This run is not finished: {run.standing}")
    warnings = [w for e in run.evaluations.values() for w in (*e.warnings, *e.disagreements())]
    yield from (Notice(f"Warning: {warning}") for warning in dict.fromkeys(warnings))


def _full(accuracy: Accuracy) -> str:
    return f"{percent(accuracy.value)} {interval(accuracy.low, accuracy.high)}"


def _what_ran(run: RunFolder) -> tuple[tuple[str, str], ...]:
    train = run.config.get("train") or {}
    attack = run.config.get("attack") or {}
    plus = [
        f"{name} ({options(node or {})})".replace(" ()", "") for name, node in (run.config.get("plus") or {}).items()
    ]
    model = run.config.get("model") or {}
    facts = [
        ("method", _joined(run.name("method"), options(run.config.get("method") or {}))),
        ("formula", run.about("method", "formula")),
        ("paper", run.about("method", "paper")),
        ("data", _joined(run.name("dataset"), run.about("dataset", "line"))),
        ("model", _joined(run.name("model"), options(model))),
        ("parameters", _thousands(run.environment.get("parameters"))),
        ("threat", threat(run)),
        ("attack in training", _joined(run.name("attack"), _attack_options({**attack}))),
        ("plus", "; ".join(plus) or "nothing"),
        ("epochs, batch", f"{number(train.get('epochs'))}, {number(train.get('batch_size'))}" if train else None),
        *((key, _node(train.get(key))) for key in ("optimizer", "schedule", "precision", "pool") if train.get(key)),
        ("label smoothing", number(train["label_smoothing"]) if train.get("label_smoothing") else None),
        ("state", run.standing),
        ("training time", duration(run.train_seconds) if run.train_seconds is not None else None),
    ]
    return tuple((name, value) for name, value in facts if value)


def _what_was_attacked(run: RunFolder) -> tuple[tuple[str, str], ...]:
    facts = [
        ("network", _joined(run.name("model"), options(run.config.get("model") or {}))),
        ("parameters", _thousands(run.environment.get("parameters"))),
        ("weights", str(run.config.get("checkpoint") or "its own")),
        ("data", _joined(run.name("dataset"), run.about("dataset", "line"))),
        ("threat", threat(run)),
        ("state", run.standing),
    ]
    return tuple((name, value) for name, value in facts if value)


def _joined(name: str, more: str | None) -> str:
    return f"{name}: {more}" if more else name


def _thousands(value: object) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _attack_options(attack: dict[str, object]) -> str:
    """Norm and ε stand under "threat"."""
    step = attack.get("step_size")
    rest = options({key: value for key, value in attack.items() if key not in ("norm", "eps", "step_size")})
    return ", ".join(part for part in (f"step {both_forms(step)}" if step is not None else "", rest) if part)


def _node(node: object) -> str:
    """A config node by the name of its class, with its options."""
    if not isinstance(node, dict):
        return str(node)
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return " ".join(part for part in (name, options(node)) if part)


def _selection(run: RunFolder) -> Iterator[Block]:
    selection = lookup(run.config, "train.selection")
    facts = [("rule", options(selection))] if isinstance(selection, dict) and selection else []
    for name, evaluation in run.evaluations.items():
        row = next((row for row in run.rows if row["epoch"] == evaluation.epoch), None)
        held_out = (row or {}).get("val") or {}
        if row and "pgd" in held_out:
            gap = f", gap {points(row['gap'])} points" if row.get("gap") is not None else ""
            figures = f"clean {percent(held_out.get('clean'))}, PGD {percent(held_out['pgd'])}, n = {held_out.get('n')}"
            facts.append((f"{name}: epoch {evaluation.epoch} of {row['epochs']}", f"held out: {figures}{gap}"))
        else:
            facts.append((name, f"epoch {evaluation.epoch}"))
    yield Facts(tuple(facts))


def attack_words(evaluation: Evaluation) -> str:
    """The attack behind an evaluation's robust accuracies."""
    a = evaluation.attack
    restarts = f"{a['restarts']} restart{'s' if a['restarts'] != 1 else ''}"
    return (
        f"{str(a['name']).upper()}, {norm(a['norm'])}, ε = {both_forms(a['eps'])}, step {both_forms(a['step_size'])}, "
        f"{a['start']} start, {restarts}, objective {a['objective']}, seed {a['seed']}"
    )


def _accuracies(run: RunFolder) -> Iterator[Block]:
    words = {attack_words(evaluation) for evaluation in run.evaluations.values()}
    for evaluation in run.evaluations.values():
        if len(words) > 1:
            yield Paragraph(f"{evaluation.checkpoint}: {attack_words(evaluation)}.")
    if len(words) == 1:
        yield Paragraph(f"The attack: {words.pop()}. Brackets: 95 % interval.")
    rows = [row for evaluation in run.evaluations.values() for row in _accuracy_rows(evaluation)]
    yield Table(("checkpoint", "attack", "ε", "k", "accuracy", "95 % interval", "n", "bound"), tuple(rows))


def _accuracy_rows(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    eps, name = float(evaluation.attack["eps"]), str(evaluation.attack["name"]).upper()
    yield _accuracy_row(evaluation, "none", 0.0, 0, evaluation.clean, "")
    for k, found in evaluation.steps.items():
        yield _accuracy_row(evaluation, f"{name}-{k}", eps, k, found, evaluation.bound)
    for radius, k, found in evaluation.eps:
        yield _accuracy_row(evaluation, f"{name}-{k}, ε varied", radius, k, found, evaluation.bound)


def _accuracy_row(
    evaluation: Evaluation, attack: str, eps: float, k: int, accuracy: Accuracy, bound: str
) -> tuple[Cell, ...]:
    return (
        Cell(evaluation.checkpoint), Cell(attack), Cell(both_forms(eps) if eps else "0", eps), Cell(str(k), k),
        Cell(percent(accuracy.value), accuracy.value), Cell(interval(accuracy.low, accuracy.high), accuracy.low),
        Cell(str(evaluation.n), evaluation.n), Cell(bound),
    )  # fmt: skip


def _figures(run: RunFolder) -> Iterator[Block]:
    evaluations = list(run.evaluations.values())
    band = "Bands: 95 % interval."
    yield Figure("steps", plots.accuracy_by_steps([steps_curve(e) for e in evaluations]), f"Accuracy against k. {band}")
    if any(e.eps for e in evaluations):
        curves = [eps_curve(e) for e in evaluations if e.eps]
        yield Figure("eps", plots.accuracy_by_eps(curves), f"Accuracy against the radius ε. {band}")
    if run.rows:
        caption = "Training. Bands: 95 % interval of the held-out figures; dotted: the epoch of the best checkpoint."
        yield Figure("training", plots.training({run.name("method"): [run.rows]}), caption)
    arrays = evaluations[0].outcomes
    if arrays is not None and len(arrays.get("shown_index", ())):
        caption = f"Checkpoint {evaluations[0].checkpoint}: clean, adversarial, and their difference around grey."
        yield Figure(evaluations[0].checkpoint, plots.grid(arrays), caption)


def steps_curve(evaluation: Evaluation) -> Curve:
    """Accuracy over k, the clean accuracy at k = 0."""
    found = {0: evaluation.clean, **dict(sorted(evaluation.steps.items()))}
    return _curve(evaluation.checkpoint, list(found), list(found.values()))


def eps_curve(evaluation: Evaluation) -> Curve:
    """Accuracy over ε."""
    return _curve(evaluation.checkpoint, [e for e, _, _ in evaluation.eps], [found for _, _, found in evaluation.eps])


def _curve(label: str, x: list[float] | list[int], found: list[Accuracy]) -> Curve:
    values = tuple(a.value for a in found), tuple(a.low for a in found), tuple(a.high for a in found)
    return Curve(label, tuple(float(value) for value in x), *values)


def _made_with(run: RunFolder) -> tuple[tuple[str, str], ...]:
    # Parameters and training time stand under "What ran".
    known = {k: v for k, v in run.environment.items() if k not in ("parameters", "train_seconds") and v is not None}
    facts = [(key, options(value) if isinstance(value, dict) else number(value)) for key, value in known.items()]
    if "seed" not in known and run.seed is not None:
        facts.append(("seed", str(run.seed)))
    for name, evaluation in run.evaluations.items():
        facts.append((f"weights ({name}), SHA-256", str(evaluation.record.get("weights_sha256"))))
        facts.append((f"test data ({name}), SHA-256", str(evaluation.record.get("data_sha256"))))
        facts.append((f"evaluated ({name}) with", options(evaluation.record.get("versions") or {})))
        passes, seconds = evaluation.record.get("forward_passes"), evaluation.record.get("seconds")
        facts.append((f"cost of evaluation ({name})", f"{_thousands(passes)} forward passes, {duration(seconds)}"))
    return tuple(facts)


def _stages(run: RunFolder) -> Iterator[Block]:
    folders = sorted(path for path in (run.path / "stages").glob("*") if is_run(path))
    if folders:
        yield Heading("Stages")
        yield Paragraph("Runs that the method asked for first, each with a folder of its own under stages/.")
        yield Facts(tuple((stage.name, f"{read(stage).standing}") for stage in folders))


def _files(folder: Path) -> tuple[tuple[str, str], ...]:
    """What is there, and the two reports, which are being written."""
    facts = []
    for name, what in _FILES.items():
        path = folder / name
        if path.is_file() and not name.startswith("report."):
            facts.append((name, f"{what} ({size(path.stat().st_size)})"))
        elif path.is_dir() or name.startswith("report.") or name == "pictures":
            facts.append((f"{name}/" if "." not in name else name, what))
    return tuple(facts)
