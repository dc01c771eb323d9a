"""What a training costs beside the FastAT Benchmark's seconds, a table of docs/methods.md.

    python -m scripts.benchmark_cost                 measure what is missing, then write the table
    python -m scripts.benchmark_cost --write         from what is kept

The benchmark's methods as it configures them (`atbench list methods --benchmark fastat`), and the other methods after
the survey, in two epochs of `experiment=cpu` with ten steps where a method has no number of its own: forward passes are
counted, images/s are of CPU time. One after the other, and what was measured is kept (`--costs`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from atbench.config.registry import benchmark, conf_dir, entries
from scripts.table_runs import markdown_table, replace_section
from scripts.training_cost import forward_passes, remembered, speed

BEGIN = "<!-- cost beside the benchmark, written by a script -->"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = ["there", "ours", "forward passes", "images/s", "to `pgd_at`", "GPU GB", "benchmark: seconds", "to its `pgd_at`"]
#: All are compared with it.
BASE = "pgd_at"


def rows() -> Iterator[tuple[str, str, list[str], float | None]]:
    """Name there, ours, the words of its training, the benchmark's seconds: its methods, then ours that it has not."""
    listed = benchmark("fastat")
    for name, given in listed.items():
        own = [word for word in given.get("words", ()) if not word.startswith("train.")]  # of its recipe
        yield name, given["method"], own, float(given["seconds"])
    known = {given["method"] for given in listed.values()}
    for entry in entries("methods", [conf_dir()]):
        if not entry["survey"] and entry["name"] not in known:
            yield "", entry["name"], [], None


def measure(method: str, words: Sequence[str], data_dir: Path) -> dict[str, Any]:
    """Forward passes, images/s and, on CUDA, the peak of memory."""
    setting = ["experiment=cpu", "attack=pgd", f"method={method}", *words, f"data_dir={data_dir}", "logger=none"]
    found = {"forward_passes": forward_passes(setting), **speed(setting)}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {**found, "gpu_gb": peak}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--costs", type=Path, default=Path("runs/benchmark_cost"), help="where what was measured is kept"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    found = []
    for name, method, words, seconds in rows():
        file = args.costs / f"{name or method}.json"
        if file.exists() or not args.write:
            cost = remembered(file, partial(measure, method, words, args.data_dir))
            print(name or method, json.dumps(cost), flush=True)
            found.append((name, method, cost, seconds))
    base = next(row for row in found if row[0] == BASE)
    processors = ", ".join(sorted({cost["processor"] for _, _, cost, _ in found}))
    table = markdown_table(HEAD, (_cells(*row, base[2]["images_per_second"], base[3]) for row in found))
    replace_section(DOCUMENT, f"{table}\n\nImages/s: CPU time of one thread, {processors}.", BEGIN)


def _cells(
    name: str, method: str, cost: dict[str, Any], seconds: float | None, base: float, base_seconds: float | None
) -> list[str]:
    there = ["", ""] if seconds is None or base_seconds is None else [f"{seconds:.0f}", f"{base_seconds / seconds:.1f}"]
    return [
        f"`{name}`" if name else "",
        f"`{method}`",
        f"{cost['forward_passes']:.1f}",
        f"{cost['images_per_second']:.0f}",
        f"{cost['images_per_second'] / base:.1f}",
        "" if cost["gpu_gb"] is None else f"{cost['gpu_gb']:.1f}",
        *there,
    ]


if __name__ == "__main__":
    main()
