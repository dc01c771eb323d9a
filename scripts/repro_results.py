"""From run folders to the JSON of a row in `results/`, and from `results/` to the table of README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from omegaconf import OmegaConf

from atbench.config.compose import compose
from atbench.config.tree import select
from atbench.reporting.leaderboard import after_autoattack
from atbench.reporting.reproduction import Result, read_results
from atbench.reporting.results import STANDARD, EvaluationRecord, read_evaluation
from atbench.reporting.run_folder import RunFolder, read_run
from scripts.repro_rows import HOW, Row
from scripts.table_runs import markdown_table, replace_section

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS, README = REPOSITORY / "results", REPOSITORY / "README.md"
NO_ROWS = "`results/` holds no row yet; `make repro-table1` makes them."
BEGIN = "<!-- results, written by a script -->"
#: The name of the evaluation in a run folder.
AUTOATTACK = "autoattack"
#: What of a configuration changes no figure, or stands beside the hash.
_INCIDENTAL = ("seed", "name", "runs", "data_dir", "resume", "device", "threads", "logger", "experiment")

_COMPOSING = Lock()  # Hydra composes one configuration at a time


def pgd_record(row: Row, tier: str) -> str:
    """The record of PGD in a run folder."""
    return f"evaluation/{row.checkpoint or HOW[tier].checkpoint}.json"


def autoattack_record(row: Row, tier: str) -> str:
    return f"evaluation/{AUTOATTACK}/{row.checkpoint or HOW[tier].checkpoint}.json"


def radius_words(run: Path) -> list[str]:
    """What another evaluation of a run is given where it is not attacked at the radius of its training."""
    eps = select(read_run(run).config, "eval.eps")
    return [] if eps is None else [f"eval.eps={eps}"]


def row_result(row: Row, tier: str, runs: Mapping[int, Path], command: Sequence[str], config: str) -> dict[str, Any]:
    """A row's JSON (docs/reproduction.md). runs: the finished run of each seed; config: `config_sha256`."""
    read = {seed: read_run(path) for seed, path in runs.items()}
    first = next(iter(read.values()))
    environment = first.environment
    return {
        "row": row.key,
        "method": first.name("method"),
        "tier": tier,
        "command": list(command),
        "n": read_evaluation(first.path / pgd_record(row, tier)).n,
        "seeds": [_seed(row, tier, seed, run) for seed, run in read.items()],
        "peer": dict(row.peer) if row.peer else None,
        "versions": {
            "atbench": environment.get("git") or environment["atbench"],
            "torch": environment["torch"],
            "python": environment["python"],
        },
        "device": _device(environment),
        "hashes": {"data": environment["data_sha256"], "config": config},
        "note": _note(tier, first),
    }


def _device(environment: Mapping[str, Any]) -> str:
    """`cpu, AMD EPYC 9654, 1 thread`."""
    threads = f"{environment['threads']} thread{'s' if environment['threads'] != 1 else ''}"
    return ", ".join(part for part in (environment["device"], environment.get("device_name"), threads) if part)


def _note(tier: str, run: RunFolder) -> str:
    """What the tier changed of the paper's setting; "" for `paper`."""
    if tier == "paper":
        return ""
    epochs, usual = (select(run.config, key) for key in ("train.epochs", "dataset.train.epochs"))
    fewer = f" instead of {usual}" if tier == "smoke" and epochs != usual else ""
    return f"{run.name('model')} on {run.name('dataset')}, {epochs} epochs{fewer}"


def config_sha256(words: tuple[str, ...]) -> str:
    """The hash of what `atbench train WORDS` composes, without seed, paths, device and what is only told about it."""
    with _COMPOSING:
        return _composed_sha256(words)


@cache
def _composed_sha256(words: tuple[str, ...]) -> str:
    composed = OmegaConf.to_container(compose("train", words), resolve=False)
    kept = {key: node for key, node in composed.items() if key not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(_bare(kept), sort_keys=True, default=str).encode()).hexdigest()


def _bare(node: Any) -> Any:
    """Without the `about` nodes."""
    if isinstance(node, dict):
        return {str(key): _bare(value) for key, value in node.items() if key != "about"}
    return [_bare(each) for each in node] if isinstance(node, list) else node


def _seed(row: Row, tier: str, seed: int, run: RunFolder) -> dict[str, Any]:
    """The figures of one seed. `autoattack` is null where it did not run, or on a network whose outputs are random."""
    evaluation = read_evaluation(run.path / pgd_record(row, tier))
    fgsm = next((attack.alone for attack in evaluation.attacks if attack.name == "fgsm"), None)
    path = run.path / autoattack_record(row, tier)
    return {
        "seed": seed,
        "clean": {**evaluation.record["clean"], "n": evaluation.n},
        "fgsm": None if fgsm is None else {"accuracy": fgsm.value, "low": fgsm.low, "high": fgsm.high},
        "pgd": _pgd(evaluation),
        "autoattack": _autoattack(read_evaluation(path)) if path.is_file() else None,
        "checkpoints": _checkpoints(run),
        "selected": evaluation.checkpoint,
        "epoch": evaluation.epoch,
        "train_seconds": run.train_seconds,
        "epochs": select(run.config, "train.epochs"),
    }


def _pgd(evaluation: EvaluationRecord) -> dict[str, Any]:
    *_, strongest = evaluation.record["steps"]
    figures = {key: value for key, value in strongest.items() if key != "k"}
    return {"name": f"PGD-{strongest['k']}", **figures, "n": evaluation.n}


def _checkpoints(run: RunFolder) -> dict[str, float]:
    """Accuracy under the same PGD of each checkpoint that was evaluated."""
    paths = {name: run.path / "evaluation" / f"{name}.json" for name in ("best", "last")}
    return {name: _pgd(read_evaluation(path))["accuracy"] for name, path in paths.items() if path.is_file()}


def _autoattack(evaluation: EvaluationRecord) -> dict[str, Any] | None:
    """Accuracy under it, under PGD on the same images, and after each of its attacks."""
    figures = after_autoattack(evaluation.record)
    if figures is None:
        return None
    after = {attack.name: attack.after.value for attack in evaluation.attacks if attack.name in STANDARD}
    return {**figures, "n": evaluation.n, "pgd": _pgd(evaluation), "after": after}


def section(folder: Path) -> str:
    """README's table: a row for each result in the folders of the tiers, the most robust first, and above it what all
    rows have in common; one line where there are none.
    """
    results = [result for rows in read_results(folder).values() for result in sorted(rows.values(), key=_rank)]
    if not results:
        return NO_ROWS
    rows, settings = [_cells(result) for result in results], [_settings(result) for result in results]
    same = [name for name in settings[0] if len({each[name] for each in settings}) == 1 < len(results)]
    for row, setting in zip(rows, settings, strict=True):
        row.update({name: text for name, text in setting.items() if name not in same})
    table = markdown_table(list(rows[0]), (list(row.values()) for row in rows))
    shared = "; ".join(f"{name} {settings[0][name]}" for name in same)
    return f"The same in every row: {shared}.\n\n{table}" if same else table


def _rank(result: Result) -> float:
    return -(result.autoattack.mean if result.autoattack else -1.0)


def _cells(result: Result) -> dict[str, str]:
    autoattack = result.autoattack
    seconds = [seed["train_seconds"] for seed in result.record["seeds"]]
    return {
        "row": f"`{result.row}`",
        "clean %": result.clean.text,
        "PGD %": f"{result.pgd.name}: {result.pgd.text}",
        "AutoAttack %": autoattack.text if autoattack else "not run",
        "PGD − AutoAttack, same images": "" if result.gap is None else f"{100 * result.gap:.1f}",
        "training of a seed, s": f"{sum(seconds) / len(seconds):.0f}",
    }


def _settings(result: Result) -> dict[str, str]:
    autoattack = result.autoattack
    images = f"{result.pgd.n:,}, AutoAttack {autoattack.n:,}" if autoattack else f"{result.pgd.n:,}"
    device = str(result.record["device"])
    return {"tier": result.tier, "images": images, "seeds": str(len(result.seeds)), "device": device}


def write_readme(document: Path = README, folder: Path = RESULTS) -> None:
    """Write README's section from the results."""
    replace_section(document, section(folder), BEGIN)
