"""Real training on CIFAR-10 for the time that is left, evaluated: `atbench train` as a user runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from atbench.runs.run_dir import read_json
from scripts.gpu.session import OutOfTime, Session

EPOCHS = 15  # recipe=fast has as many
SHARE = 0.65  # of the time that is left, for training; the rest is for the evaluation
GRACE = 45.0  # seconds that a run gets to save what it has
REAL = (
    *("method=pgd_at", "dataset=cifar10", "model=preactresnet18", "recipe=fast"),
    *("train.precision.attack=bf16", "train.precision.update=bf16"),
    *("eval=standard", "eval.limit=1000", "eval.checkpoints=[best]"),
)
TINY = ("method=pgd_at", "dataset=digits", "model.width=2", "attack.steps=2", "eval=smoke", "eval.checkpoints=[best]")


def training(session: Session) -> None:
    """Train and evaluate, or go on with it. A run that needs longer is ended, and the next call goes on."""
    stage = session.stage("training")
    stage["cells"].pop("run", None)  # written anew by every call
    seconds = session.left() - GRACE
    if seconds <= 0 and not session.smoke:
        raise OutOfTime
    begun = sorted(session.runs.glob("*/checkpoints/last.pt"))
    words = [f"resume={begun[-1].parents[1]}"] if begun else new_run(session, seconds)
    command = [sys.executable, "-m", "atbench", "train", *words]
    print("training:", " ".join(command[1:]), flush=True)
    session.runs.mkdir(parents=True, exist_ok=True)
    with (session.runs / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        code = wait(process, None if session.smoke else seconds)
    folders = sorted(path.parent for path in session.runs.glob("*/status.json"))
    stage["cells"]["run"] = cell = found(folders[-1]) if folders else {}
    stage["done"] = code == 0
    if code not in (0, 75, 130, 143):
        cell["error"] = f"exit code {code}: {last_line(session.runs / 'log.txt')}"
    session.save()
    if not stage["done"] and "error" not in cell:
        raise OutOfTime


def new_run(session: Session, seconds: float) -> list[str]:
    """The words of a run whose epochs fit into the time, by what the bench has measured."""
    bench = session.record["stages"].get("bench", {}).get("cells", {})
    rate = bench.get("pgd_at/128/bf16", {}).get("images_per_second")
    fitting = int(SHARE * seconds * rate / 49_000) if rate and not session.smoke else EPOCHS
    epochs = 1 if session.smoke else max(1, min(EPOCHS, fitting))
    places = (f"runs={session.runs}", f"device={session.device}", f"data_dir={session.data_dir}", "logger=none")
    return [*(TINY if session.smoke else REAL), f"train.epochs={epochs}", *places]


def wait(process: subprocess.Popen[bytes], seconds: float | None) -> int:
    """The exit code of a run; after so many seconds it is asked to save and end, and killed if it does not."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GRACE - 10)
        except subprocess.TimeoutExpired:
            return -1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def found(folder: Path) -> dict[str, Any]:
    """What a run folder says: how far it came, and its accuracies where it was evaluated."""
    status, record = read_json(folder / "status.json"), read_json(folder / "evaluation" / "best.json")
    cell = {key: status.get(key) for key in ("epoch", "epochs", "train_seconds")}
    if record:
        figures = {"robust": "accuracy", "low": "low", "high": "high"}
        cell |= {"clean": record["clean"]["accuracy"], "n": record["n"]}
        cell |= {name: record["robust"][key] for name, key in figures.items()}
        cell["audit"] = record["audit"]["sentence"]
    return cell


def last_line(path: Path) -> str:
    return (path.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
