"""The record of an acceptance as Markdown tables, and whether it passed."""

from __future__ import annotations

from typing import Any

from scripts.gpu.session import number

TITLES = {
    "versions": "Versions",
    "parity": "Parity with the CPU: largest differences of one step",
    "tests": "Tests marked `cuda`",
    "bench": "Training speed, PreActResNet-18",
    "training": "PGD-AT on CIFAR-10",
}
NOTES = {
    "parity": "Of the loss and the weights relative, of the inner image absolute; pixels: the share that differs.",
    "bench": "Images of loaded batches: free_at uses each of them eight times. Share: time in the search, of all.",
    "training": "robust: an upper bound, the worst case per example of eval=standard; low, high: its 95 % interval.",
}


def markdown(record: dict[str, Any]) -> str:
    """All stages, one table each."""
    lines = [f"# Acceptance on {record['device']}", ""]
    if record.get("smoke"):
        lines += ["Tiny sizes, to try the script itself: no figure below means anything.", ""]
    for name, title in TITLES.items():
        stage = record["stages"].get(name)
        state = "not begun" if stage is None else "done" if stage["done"] else "not finished"
        lines += [f"## {title} ({state})", ""]
        if stage and stage["cells"]:
            lines += [*([NOTES[name], ""] if name in NOTES else []), *table(stage["cells"]), ""]
    return "\n".join(lines)


def table(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Cells as rows, under all the keys that any of them has."""
    keys = list(dict.fromkeys(key for cell in cells.values() for key in cell))
    rows = [["", *keys], ["---"] * (1 + len(keys))]
    rows += [[name, *(number(cell[key]) if key in cell else "" for key in keys)] for name, cell in cells.items()]
    return [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows]


def faults(record: dict[str, Any]) -> list[str]:
    """What did not pass: errors, failed tests, differences in float64 beyond the bounds."""
    return [
        f"{stage} {name}: {cell.get('error') or 'does not agree or failed'}"
        for stage, content in record["stages"].items()
        for name, cell in content["cells"].items()
        if "error" in cell or cell.get("agrees") is False or cell.get("failed")
    ]
