"""Real processes that are killed, interrupted, doubled: what is lost is time, never a bit of the result."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.training import checkpoint

pytestmark = pytest.mark.faults

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = (
    "logger=none",
    "model.width=8",
    "attack.steps=3",
    "train.epochs=4",
    "train.checkpoint.steps=7",
    "train.selection.n=50",
    "train.selection.steps=2",
    "eval=smoke",
    "eval.limit=50",
    "threads=1",
)
PATIENCE = 240  # seconds, for a loaded machine


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "atbench", "train", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command(*words), cwd=folder, env=environment(), stdout=log, stderr=log)


def finish(folder: Path, *words: str) -> None:
    done = subprocess.run(command(*words), cwd=folder, env=environment(), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr.decode()


def await_that(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """Wait until `what()` is true, while the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert process.poll() is None, "the process ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").glob("*") if path.name != "sweeps")


def last(run: Path) -> dict[str, Any]:
    return checkpoint.read(run / "checkpoints" / "last.pt")


def assert_same(a: Path, b: Path) -> None:
    """Weights, tables, optimizer state and metrics of two runs are equal to the bit."""
    first, second = last(a), last(b)
    for part in ("method", "model"):
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), key
    for group, state in first["optimizers"].items():
        for key, slots in state["state"].items():
            for slot, value in slots.items():
                other = second["optimizers"][group]["state"][key][slot]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other))
    timed = ("seconds", "examples_per_second", "attack_share")
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    plain = [[{key: value for key, value in row.items() if key not in timed} for row in each] for each in rows]
    assert plain[0] == plain[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a method that nothing happened to; made once."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            finish(folder, f"method={method}", *WORDS)
            (made[method],) = runs(folder)
        return made[method]

    return make


@pytest.mark.parametrize("method", ["trades", "iaat", "dverge", "rst", "dkl", "lbgat"])
@pytest.mark.parametrize("step", [7, 49], ids=["first-epoch", "second-epoch"])
def test_killed_in_mid_epoch(method: str, step: int, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    process = start(tmp_path, f"method={method}", *WORDS)
    steps = 35

    def far_enough() -> bool:
        for run in runs(tmp_path):
            path = run / "checkpoints" / "last.pt"
            if path.exists():
                try:
                    state = checkpoint.read(path)
                except Exception:  # it was being replaced while we looked
                    return False
                return bool(state["epoch"] * steps + state["step"] >= step)
        return False

    await_that(far_enough, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = runs(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    assert (run / "lock").exists(), "a killed owner leaves its lock, which the next takes over"
    finish(tmp_path, f"resume={run}")
    assert_same(undisturbed(method), run)


@pytest.mark.parametrize("method", ["dverge", "rst", "kd_swa"])
def test_killed_during_stage_0(method: str, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    process = start(tmp_path, f"method={method}", *WORDS)
    await_that(lambda: list(tmp_path.glob("runs/*/stages/*/checkpoints/last.pt")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = runs(tmp_path)
    assert not (run / "checkpoints" / "last.pt").exists(), "the main part had not begun"
    finish(tmp_path, f"resume={run}")
    assert_same(undisturbed(method), run)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(
    sent: signal.Signals, code: int, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    process = start(tmp_path, "method=trades", *WORDS)
    await_that(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), process)
    process.send_signal(sent)
    assert process.wait(timeout=PATIENCE) == code
    (run,) = runs(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    finish(tmp_path, f"resume={run}")
    assert_same(undisturbed("trades"), run)


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, "method=trades", *WORDS, "train.epochs=200")
    (found,) = await_that(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), process)
    second = subprocess.run(
        command(f"resume={found.parent.parent}"), cwd=tmp_path, env=environment(), capture_output=True, timeout=PATIENCE
    )
    process.kill()
    process.wait()
    assert second.returncode == 5
    assert f"in use by process {process.pid}" in second.stderr.decode()


def test_torchrun_makes_one_run_folder(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "atbench", "train"]
    done = subprocess.run(
        [sys.executable, *words, "method=iaat", *WORDS, "train.batch_size=32"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr.decode()
    (run,) = runs(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert done.stdout.decode().count("upper bound") == 1


def test_a_dead_worker_takes_all_down_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "atbench", "train"]
    process = subprocess.Popen(
        [sys.executable, *words, "method=trades", *WORDS, "train.epochs=50"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await_that(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 60
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker), 0)
    (run,) = runs(tmp_path)
    assert last(run)["step"] + last(run)["epoch"] > 0


def test_the_one_that_is_left_says_that_it_lost_the_other(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    joined = {**environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            command("method=trades", *WORDS, "train.epochs=200"),
            cwd=tmp_path,
            env={**joined, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    await_that(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), processes[0])
    processes[1].kill()
    _, said = processes[0].communicate(timeout=60)
    processes[1].communicate()
    assert processes[0].returncode == 5
    last = said.decode().strip().splitlines()[-1]
    assert last.startswith("error: processes: rank 0 — has lost another one") and b"Traceback" not in said
    (run,) = runs(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5) and "rank 0" in status["message"]
