"""`atbench doctor`: versions, devices, W&B, data sets and write access of this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from atbench.config import registry
from atbench.errors import AtbenchError, EnvironmentFault

State = Literal["ok", "note", "broken"]
_PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "scikit-learn", "matplotlib", "wandb")
_MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "broken": "[red]broken[/red]"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `broken` is what keeps a run from working, `note` what it can do without."""

    name: str
    value: str
    state: State = "ok"


def main(runs: Path, data_dir: Path, as_json: bool) -> int:
    """Print the findings on stdout; 0, or the exit code of EnvironmentFault where something needed is broken."""
    findings = run_checks(runs, data_dir)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        _table(findings)
    return EnvironmentFault.exit_code if any(finding.state == "broken" for finding in findings) else 0


def run_checks(runs: Path, data_dir: Path) -> list[Finding]:
    """Run all checks. A check that raises is a finding, and the others still run."""
    checks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("packages", _packages),
        ("devices", _devices),
        ("runs", lambda: [_writable(runs)]),
        ("W&B", _wandb),
        ("data sets", lambda: _data_sets(data_dir)),
    )
    findings = [Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    for name, check in checks:
        try:
            findings += check()
        except Exception as fault:
            findings.append(Finding(name, f"{type(fault).__name__}: {fault}", "broken"))
    return findings


def _packages() -> list[Finding]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", "broken"))
    return findings


def _devices() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = Path("/proc/cpuinfo")
    has_bf16 = flags.is_file() and "avx512_bf16" in flags.read_text(encoding="utf-8")
    native = "native" if torch.backends.cpu.get_cpu_capability() == "AVX512" and has_bf16 else "emulated, slow"
    findings = [Finding("cpu", f"{cores} cores, {torch.get_num_threads()} threads, bf16 {native}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "native" if device.major >= 8 else "emulated, slow"
        findings.append(Finding(f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, bf16 {bf16}"))
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU"
        findings.append(Finding("cuda", f"none; {built}", "note"))
    return findings


def _writable(runs: Path) -> Finding:
    """Whether runs can be written, tried in the folder or, where there is none yet, in the first above that exists."""
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        return Finding("runs", f"{runs}: {fault.strerror or fault}", "broken")
    return Finding("runs", f"{runs.absolute()}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free")


def _wandb() -> list[Finding]:
    """The mode that W&B would run in, as the logger itself decides it."""
    from atbench.reporting import wandb_logger

    mode, why = wandb_logger.wandb_mode({})
    return [Finding("W&B", f"{mode} ({why})")]


def _data_sets(data_dir: Path) -> list[Finding]:
    """Each data set of ours, as its own loader finds it in `data_dir`; nothing is fetched."""
    from omegaconf import DictConfig, OmegaConf

    from atbench.config.instantiate import accepted_kwargs, build

    findings = []
    for row in registry.entries("datasets", [registry.conf_dir()]):
        name = row["name"]
        tree = OmegaConf.load(registry.conf_dir() / "dataset" / f"{name}.yaml")
        assert isinstance(tree, DictConfig)
        node = tree.source
        if lacks := sorted(OmegaConf.missing_keys(node)):
            findings.append(Finding(name, f"your own: dataset={name} dataset.{lacks[0]}=..."))
            continue
        kwargs = accepted_kwargs(node, "dataset.source", {"data_dir": data_dir})
        node.update(accepted_kwargs(node, "dataset.source", {"download": False}))
        try:
            source = build(node, "dataset.source", **kwargs)
            findings.append(Finding(name, f"{len(source.train)} images to train on, {len(source.classes)} classes"))
        except AtbenchError as lack:
            findings.append(Finding(name, f"{lack.value} {lack.why}; {lack.fix}", "note"))
    return findings


def _table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row(Text.from_markup(_MARKS[finding.state]), Text(finding.name, "bold"), Text(finding.value))
    console = Console()
    if not console.is_terminal:
        console.width = 240
    console.print(table)
