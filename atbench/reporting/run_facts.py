"""Settings, environment and files of a run as names and values."""

from __future__ import annotations

from pathlib import Path

from atbench.reporting.run_folder import RunFolder
from atbench.reporting.wording import both_forms, duration, file_size, norm_name, number_text, options_text

# Files of a run folder and their descriptions.
_FILES = {
    "report.html": "this report as one self-contained page",
    "report.md": "this report as Markdown",
    "config.yaml": "the resolved configuration",
    "as_typed.yaml": "what was typed",
    "environment.json": "versions, device, threads, seeds, checksums",
    "status.json": "state, exit code, times",
    "metrics.jsonl": "one row an epoch, and those of the watch for collapses",
    "metrics.csv": "the epochs as a table",
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
    "pictures": "the figures of this report; `atbench report` writes them as PNG, SVG and PDF",
    "tables": "the tables of this report as CSV and LaTeX",
    "stages": "pretraining runs of the method",
    "tensorboard": "event files of TensorBoard",
    "wandb": "the W&B mirror",
}
#: Settings of the loss that are told where they are set.
LOSS_SETTINGS = ("label_smoothing", "attack_label_smoothing", "margin")
_WRITTEN = ("pictures", "tables")  # with the report


def threat_text(run: RunFolder) -> str:
    """Norm and ε of training, ε in both forms."""
    attack = run.config.get("attack") or {}
    return f"{norm_name(attack.get('norm'))}, ε = {both_forms(attack.get('eps'))}"


def training_facts(run: RunFolder) -> tuple[tuple[str, str], ...]:
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
        *((key.replace("_", " "), number_text(train[key])) for key in LOSS_SETTINGS if train.get(key)),
        ("state", run.status_line),
        ("training time", duration(run.train_seconds) if run.train_seconds is not None else None),
    ]
    return tuple((name, value) for name, value in facts if value)


def attacked_facts(run: RunFolder) -> tuple[tuple[str, str], ...]:
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


def environment_facts(run: RunFolder) -> tuple[tuple[str, str], ...]:
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


def file_facts(folder: Path) -> tuple[tuple[str, str], ...]:
    """The files that exist, and the two reports, which are being written."""
    records = sorted(path.stem for path in (folder / "evaluation").glob("*.npz") if "." not in path.stem)
    known = _FILES | {f"evaluation/{name}.{kind}": what for name in records for kind, what in _RECORDS.items()}
    facts = []
    for name, what in known.items():
        if name.startswith("report."):
            facts.append((name, what))
        elif (folder / name).is_file():
            facts.append((name, f"{what} ({file_size((folder / name).stat().st_size)})"))
    facts += [(f"{name}/", what) for name, what in _FOLDERS.items() if (folder / name).is_dir() or name in _WRITTEN]
    return tuple(facts)
