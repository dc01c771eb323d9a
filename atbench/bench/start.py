"""`atbench bench start`: CPU seconds of commands in fresh processes, and what writing a checkpoint takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory

from atbench.bench.clock import cpu_seconds
from atbench.bench.results import Row
from atbench.bench.session import Session

PROGRAM = (sys.executable, "-m", "atbench")
COMMANDS = {
    "--help": (*PROGRAM, "--help"),
    "list methods": (*PROGRAM, "list", "methods"),
    "import": (sys.executable, "-c", "import atbench.workflows.train"),
    "train --cfg job": (*PROGRAM, "train", "--cfg", "job"),
}
# In a process of its own, whose greatest memory is then that of the checkpoint.
CHECKPOINT = """
import json, resource, sys, time
from pathlib import Path
import torch
from atbench.training import checkpoint
scale = 1 if sys.platform == "darwin" else 1024
folder, size = Path(sys.argv[1]), int(sys.argv[2])
state = {"model": {str(n): torch.rand(size // 16) for n in range(4)}}
checkpoint.save(folder / "first.pt", {"model": torch.zeros(1)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
checkpoint.save(folder / "last.pt", state)
seconds = time.process_time() - began
grown = scale * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps({"seconds": seconds, "grown": grown}))
"""


def measure(session: Session, parts: tuple[str, ...]) -> Iterator[Row]:
    for part in parts:
        yield from PARTS[part](session)


def commands(session: Session) -> Iterator[Row]:
    """CPU seconds from the start of a process to its end, files of bytecode written by an uncounted run before."""
    chosen = dict(list(COMMANDS.items())[:1]) if session.tiny else COMMANDS
    with TemporaryDirectory() as folder:
        for name, words in chosen.items():
            seconds = [child(words, folder)[0] for _ in range(1 + session.rounds)][1:]
            yield session.row(name, " ".join(["python", *words[1:]]), seconds, "s")


def child(words: tuple[str, ...], folder: str) -> tuple[float, str]:
    """CPU seconds of a program, and what it says. It runs in `folder`."""
    places = [os.path.abspath(place) for place in sys.path if place or os.getcwd()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done: list[str] = []

    def work() -> None:
        told = subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        done.append(told.stdout)

    return cpu_seconds(work), done[0]


def checkpoint(session: Session) -> Iterator[Row]:
    """CPU seconds a GB of saving a checkpoint, and memory beside what is saved, over the size of it."""
    size = 2**22 if session.tiny else 2**28
    found = []
    with TemporaryDirectory() as folder:
        for _ in range(session.rounds):
            found.append(json.loads(child((sys.executable, "-c", CHECKPOINT, folder, str(size)), folder)[1]))
    what, scale = f"checkpoint of {size / 2**20:.0f} MiB", 1e9 / size
    yield session.row("checkpoint/save", f"{what}: saving, a GB", [scale * each["seconds"] for each in found], "s")
    memory = [each["grown"] / size for each in found]
    yield session.row("checkpoint/memory", f"{what}: memory beside it, over its size", memory)


PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {"commands": commands, "checkpoint": checkpoint}
