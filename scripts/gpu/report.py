"""The record of an acceptance as Markdown tables, and whether it passed."""

from __future__ import annotations

from typing import Any

from scripts.gpu.session import number

TITLES = {
    "versions": "Versions",
    "parity": "Parity with the CPU: largest differences of one step",
    "tests": "Tests marked `cuda`",
    "capture": "Searches as CUDA graphs: largest differences of the weights, and speed at batch 128",
    "ranks": "Two processes against one",
    "bench": "Training speed, PreActResNet-18",
    "rows": "CIFAR-10, trained and attacked",
}
NOTES = {
    "parity": "Of the loss and the weights relative, of the inner image absolute; pixels: the share that differs.",
    "bench": "Images of loaded batches: free_at uses each of them eight times. Share: time in the search, of all; "
    "none to speak of where the search shares its pass with the update.",
    "capture": "Of the weights after so many steps, captured against plain; 0 is equal bit for bit. captured: whether "
    "a graph was replayed.",
    "ranks": "Of the weights, relative, in float64 without BatchNorm.",
    "rows": "low, high: the 95 % interval of the accuracy under AutoAttack on n test images.",
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
            lines += [*([NOTES[name], ""] if name in NOTES else []), *tables(stage["cells"])]
    return "\n".join(lines)


def tables(cells: dict[str, dict[str, Any]]) -> list[str]:
    """One table of all cells, and one more of each that holds the JSON of a program."""
    lines = [*table({name: cell for name, cell in cells.items() if "json" not in cell}), ""]
    for name, cell in cells.items():
        if "json" in cell:
            lines += [f"### {name} (exit code {cell['exit']})", "", *document(cell["json"])]
    return lines


def document(found: dict[str, Any]) -> list[str]:
    """The single values of a JSON document as a table, and each of its lists of objects as one. What lies deeper stays
    in the JSON.
    """
    single = {key: {"": value} for key, value in found.items() if not isinstance(value, dict | list)}
    lines = [*table(single), ""] if single else []
    for rows in found.values():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            plain = [{key: cell for key, cell in row.items() if not isinstance(cell, dict | list)} for row in rows]
            lines += [*table({str(row.pop("name", at)): row for at, row in enumerate(plain)}), ""]
    return lines


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
