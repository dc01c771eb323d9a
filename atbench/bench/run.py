"""One run of `atbench bench KIND`: rows, and the facts about machine and versions that belong to them."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from atbench.bench import KINDS
from atbench.bench.results import Row, figure, read_bars, show
from atbench.bench.session import Session
from atbench.training import reused_memory, threads
from atbench.training.distributed import choose_device
from atbench.workflows.environment import processor_name

PACKAGES = (
    "atbench",
    "torch",
    "torchvision",
    "numpy",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
    "pyautoattack",
)


def run(
    kind: str,
    parts: tuple[str, ...] = (),
    device: str = "auto",
    count: int = 1,
    rounds: int | None = None,
    methods: tuple[str, ...] = (),
    as_json: bool = False,
    tiny: bool = False,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure a kind and print it. `parts`: those of `--only`, none for the usual ones; `count`: CPU threads."""
    session = Session(choose_device(device), rounds or KINDS[kind].rounds, read_bars(kind), methods, tiny)
    rows = []
    with threads(count), reused_memory():
        measure = importlib.import_module(KINDS[kind].module).measure
        for row in measure(session, parts or KINDS[kind].usual()):
            rows.append(row)
            print(f"{row.what}: {figure(row.median)} {row.unit}", file=sys.stderr, flush=True)
        document = describe(kind, session, rows)
    show(document, rows, as_json)
    return document, rows


def describe(kind: str, session: Session, rows: list[Row]) -> dict[str, Any]:
    """What `--json` prints."""
    cuda = session.device.type == "cuda"
    return {
        "kind": kind,
        "device": torch.cuda.get_device_name(session.device) if cuda else processor_name(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **{name: known(name) for name in PACKAGES},
        },
        "threads": torch.get_num_threads(),
        "rounds": session.rounds,
        "rows": [row.record() for row in rows],
        "notes": session.notes,
    }


def known(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
