"""The watch for catastrophic overfitting in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atbench.reporting import plots
from atbench.reporting.document import Block, Figure, Notice
from atbench.reporting.wording import percent

#: What came after, by `guard.collapse`.
_AFTERWARDS = {
    "warn": "training went on (guard.collapse=stop or rollback would not)",
    "stop": "training was ended there",
    "rollback": "training went back to the last healthy measurement",
}


def collapse_sentence(row: Mapping[str, Any]) -> str:
    """A row of metrics.jsonl in which a collapse was found, in words with both accuracies."""
    pgd = f"PGD-{row['k']} {percent(row['pgd'])} (highest so far {percent(row['highest'])})"
    where = f"step {row['step']} (epoch {row['epoch']})"
    figures = f"FGSM {percent(row['fgsm'])}, {pgd} on {row['n']} held-out examples"
    return f"catastrophic overfitting at {where}: {figures}; {_AFTERWARDS[row['collapse']]}"


def collapse_notices(watch: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """A notice of each collapse among the rows of the watch."""
    for row in watch:
        if "collapse" in row:
            sentence = collapse_sentence(row)
            yield Notice(f"{sentence[0].upper()}{sentence[1:]}.", grave=True)


def watch_figure(watch: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """The figure of the watch; none where nothing was measured."""
    if watch:
        caption = (
            f"Watch for catastrophic overfitting: PGD-{watch[-1]['k']} and FGSM on the same {watch[-1]['n']} held-out "
            "examples while training goes on. Dashed: a collapse."
        )
        yield Figure("watch", plots.draw_watch(watch), caption)
