"""Progress of training and evaluation on stderr.

On a terminal there is a live bar; anywhere else (pipe, CI, Slurm log) plain lines without control codes: one an epoch,
and one every SECONDS of a validation or an attack that takes so long. Nothing here reads a tensor, so printing never
waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from atbench.evaluation.activity import Activity
from atbench.reporting.collapse_report import collapse_sentence
from atbench.reporting.console import interactive, print_line
from atbench.reporting.wording import duration, percent

SECONDS = 20.0  # between two plain lines
_REDRAWS_A_SECOND = 4  # a bar that is drawn more often costs the CPU runs it watches


class _Since:
    """Tells when SECONDS have passed since the last line."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < SECONDS:
            return False
        self._last = now
        return True


class _Rate(ProgressColumn):
    """Images a second and the attack's share of the time; absent until known."""

    def render(self, task: Task) -> Text:
        rate, share = task.fields["rate"], task.fields["share"]
        parts = ([f"{rate:,.0f} img/s"] if rate else []) + (
            [f"attack {100 * share:.0f} %"] if share is not None else []
        )
        return Text("  ".join(parts), style="dim")


def _bar(console: Console, *more: ProgressColumn) -> Bar:
    """A live bar: description, steps or images done, time spent and left, and `more`."""
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=console,
        refresh_per_second=_REDRAWS_A_SECOND,
        transient=True,
        expand=True,
    )


class _Shown:
    """What has a live bar, or none, while a block runs."""

    _bar: Bar | None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress(_Shown):
    """Progress of a training: `with Progress(...) as progress: ... progress.advance(1, examples=128)`.

    total_steps, epochs: of the whole run. done, epoch: where a resumed run starts. draw: False on every rank but 0;
    such an object accepts all calls and shows nothing. label: the stage a line belongs to ("stage member0").
    """

    def __init__(
        self,
        total_steps: int,
        epochs: int,
        *,
        done: int = 0,
        epoch: int = 0,
        draw: bool = True,
        label: str = "",
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._draw, self._label, self._epochs = draw, label, epochs
        self._examples, self._since = 0, time.monotonic()
        self._bar = None
        self._since_line, self._epoch = _Since(), min(epoch + 1, epochs)
        if draw and interactive(self._console):
            self._bar = _bar(self._console, _Rate())
            now = self._describe(self._epoch)
            self._task = self._bar.add_task(now, total=total_steps, completed=done, rate=0.0, share=None)

    def advance(self, steps: int = 1, examples: int = 0) -> None:
        """Steps done, and the training images they used."""
        if self._bar is None:
            return
        self._examples += examples
        rate = self._examples / max(time.monotonic() - self._since, 1e-9)
        self._bar.update(self._task, advance=steps, rate=rate)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the row of metrics.jsonl of a finished epoch on one line."""
        if not self._draw:
            return
        self._print(epoch_line(row, self._label))
        self._epoch = min(row["epoch"] + 1, self._epochs)
        if self._bar is not None:
            self._bar.update(self._task, description=self._describe(self._epoch), share=row.get("attack_share"))
            self._examples, self._since = 0, time.monotonic()  # the rate is that of the epoch in progress

    def validating(self, activity: Activity) -> None:
        """Show how far the validation after an epoch is; called at every forward pass of it."""
        if self._bar is not None:
            now = f"{self._describe(self._epoch)}  validation {activity.done}/{activity.total}"
            self._bar.update(self._task, description=now, rate=0.0, share=None)
        elif self._draw and self._since_line.due():
            self._print(f"{self._describe(self._epoch)}  {activity_text(activity)}")

    def say(self, text: str) -> None:
        """Print a line, of the stage where there is one."""
        if self._draw:
            self._print(f"{self._label}  {text}".strip())

    def watched(self, row: Mapping[str, Any]) -> None:
        """Print a collapse that a row of metrics.jsonl tells of."""
        if self._draw and "collapse" in row:
            self._print(f"warning: {collapse_sentence(row)}")

    def _describe(self, epoch: int) -> str:
        return f"{self._label}  epoch {epoch}/{self._epochs}".strip()

    def _print(self, text: str) -> None:
        # Text, not str: nothing in a message may be taken for markup. Off a terminal a line stays one line.
        self._console.print(Text(text), soft_wrap=self._bar is None, highlight=False)


def epoch_line(row: Mapping[str, Any], label: str = "") -> str:
    """A row of metrics.jsonl as one line; what the row lacks is left out."""
    train, val = row.get("train", {}), row.get("val", {})
    steps = val.get("k")
    parts = [label, f"epoch {row['epoch']}/{row['epochs']}"]
    parts += [f"loss {train['loss']:.3g}"] if train.get("loss") is not None else []
    parts += [f"train {percent(train['accuracy'])}"] if train.get("accuracy") is not None else []
    parts += [f"val clean {percent(val['clean'])}"] if val.get("clean") is not None else []
    parts += [f"val PGD{f'-{steps}' if steps else ''} {percent(val['pgd'])}"] if val.get("pgd") is not None else []
    parts += [f"all norms {percent(val['union'])}"] if val.get("union") is not None else []
    parts += [f"gap {100 * row['gap']:.1f}"] if row.get("gap") is not None else []
    parts += [f"{name} {value:.3g}" for name, value in row.get("method", {}).items() if value is not None]
    parts += [f"{row['examples_per_second']:,.0f} img/s"] if row.get("examples_per_second") is not None else []
    parts += [f"attack {100 * row['attack_share']:.0f} %"] if row.get("attack_share") is not None else []
    return "  ".join(part for part in [*parts, "best" if row.get("best") else ""] if part)


class EvalProgress(_Shown):
    """Progress of an evaluation: `with EvalProgress("best", console) as progress`.

    On a terminal a bar of the attack that runs, elsewhere a line every SECONDS. name: the checkpoint.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._bar = _bar(console) if interactive(console) else None
        self._task = self._bar.add_task(name, total=None) if self._bar else None
        self._since_line, self._shown, self._began, self._first = _Since(), "", 0.0, 0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(Text(f"{self._name}  {text}"), soft_wrap=self._bar is None, highlight=False)

    def __call__(self, activity: Activity) -> None:
        """Called at every forward pass."""
        if activity.name != self._shown:
            self._shown, self._began, self._first = activity.name, time.monotonic(), activity.done
            if self._bar is not None and self._task is not None:
                self._bar.reset(self._task, total=activity.total or None)
        if self._bar is not None and self._task is not None:
            text = f"{self._name}  {activity_text(activity, images=False)}"
            self._bar.update(self._task, description=text, completed=activity.done)
        elif self._since_line.due():
            print_line(f"{self._name}  {activity_text(activity)}{self._left(activity)}", self._console, "dim")

    def _left(self, activity: Activity) -> str:
        done = activity.done - self._first
        if not done:
            return ""
        seconds = (time.monotonic() - self._began) / done * (activity.total - activity.done)
        return f", about {duration(seconds)} left"


def activity_text(activity: Activity, images: bool = True) -> str:
    """`attack 2/5 apgd_t, 1,240 of 10,000 images, 9,612 still robust`; without `images` their number stands beside."""
    parts = [activity.name]
    parts += [f"{activity.done:,} of {activity.total:,} images"] if images and activity.total else []
    parts += [f"{activity.total - activity.broken:,} still robust"] if activity.broken is not None else []
    return ", ".join(parts)
