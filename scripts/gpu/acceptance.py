"""The stages one after the other, within the minutes, and what they leave on the disk."""

from __future__ import annotations

import argparse
import platform
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision

import atbench
from atbench.errors import AtbenchError, ConfigError, hint
from atbench.runs.run_dir import read_json, write_text
from scripts.gpu.bench import bench
from scripts.gpu.capture import capture
from scripts.gpu.parity import parity
from scripts.gpu.ranks import ranks
from scripts.gpu.report import faults, markdown
from scripts.gpu.rows import rows
from scripts.gpu.session import ROOT, OutOfTime, Session

RESERVE = 10.0  # seconds to write results in


def versions(session: Session) -> None:
    """What computes: device, driver, libraries."""

    def measure(_: str) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "atbench": atbench.__version__,
            "commit": output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda,
        }
        if session.device.type == "cuda":
            device = torch.cuda.get_device_properties(session.device)
            facts["cudnn"] = torch.backends.cudnn.version()
            facts["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
            facts["capability"] = f"{device.major}.{device.minor}"
            facts["memory_gib"] = device.total_memory / 2**30
        return facts

    session.fill("versions", ["here"], measure)


def output(*command: str) -> str | None:
    """The first line that a program prints; None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [None])[0]


def tests(session: Session) -> None:
    """Run the tests marked `cuda`."""

    def measure(_: str) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tests.xml"
            command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={path}"]
            files = sorted(str(file) for file in (ROOT / "tests").glob("test_cuda*.py"))
            done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
            if not path.exists():
                raise RuntimeError((done.stderr.strip().splitlines() or ["pytest wrote nothing"])[-1])
            suite = ElementTree.parse(path).getroot()
        counts = {
            key: sum(int(s.get(key, 0)) for s in suite.iter("testsuite"))
            for key in ("tests", "failures", "errors", "skipped")
        }
        failed = counts["failures"] + counts["errors"]
        return {"passed": counts["tests"] - failed - counts["skipped"], "failed": failed, "skipped": counts["skipped"]}

    session.fill("tests", ["cuda"], measure)


STAGES = {
    "versions": versions,
    "parity": parity,
    "tests": tests,
    "capture": capture,
    "ranks": ranks,
    "bench": bench,
    "rows": rows,
}


def open_session(args: argparse.Namespace, device: torch.device, end: float) -> Session:
    """What this call goes on from. Raises ConfigError where it was measured with something else."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    identity = {"device": name, "torch": torch.__version__, "atbench": atbench.__version__, "smoke": args.smoke}
    folder, runs = args.out / slug, args.runs / slug
    path = folder / "acceptance.json"
    record = {} if args.fresh else read_json(path)
    if record and (other := {key: record.get(key) for key in identity}) != identity:
        raise ConfigError(str(path), other, f"is not of {identity}", "--fresh begins again")
    if not record:
        record = {**identity, "started": datetime.now().isoformat(timespec="seconds"), "calls": [], "stages": {}}
    runs = runs / re.sub(r"\W", "-", record["started"])  # a fresh record has fresh runs
    return Session(device, folder, end, args.smoke, runs, args.data_dir, record)


def work(session: Session, names: list[str]) -> bool:
    """Run what is left of the stages. Returns whether all are done. Raises OutOfTime."""
    for name in names:
        if not session.stage(name)["done"]:
            STAGES[name](session)
    return all(session.stage(name)["done"] for name in names)


def run(args: argparse.Namespace, device: torch.device, end: float) -> int:
    """Work until `end` at most, of time.monotonic(). Returns the exit code."""
    began = time.monotonic()
    try:
        names = chosen(args.only)
        session = open_session(args, device, end - RESERVE)
    except AtbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, max(session.left(), 0.01))
    try:
        done = work(session, names)
    except OutOfTime:
        done = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        session.record["calls"].append({"minutes": args.minutes, "seconds": round(time.monotonic() - began, 1)})
        session.save()
        write_text(session.folder / "acceptance.md", markdown(session.record))
    wrong = faults(session.record)
    print(*wrong, session.folder / "acceptance.md", sep="\n")
    return 1 if wrong else 0 if done else 75


def chosen(only: str) -> list[str]:
    """The stages that `--only` names, in their order."""
    for name in only.split(","):
        if name not in STAGES:
            raise ConfigError("--only", name, "there is no such stage", hint(name, STAGES))
    return [name for name in STAGES if name in only.split(",")]


def alarm(*_: Any) -> None:
    raise OutOfTime
