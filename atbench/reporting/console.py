"""The terminal of a run: what will run, how far it is, what came out. Progress goes to stderr; stdout is for results.

On a terminal there is a live bar; anywhere else (pipe, CI, Slurm log) one plain line an epoch, without control codes.
Nothing here reads a tensor: what is shown was a Python number before it came here, so that showing it never waits for a
device.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from atbench.reporting.headline import ASK_RAND
from atbench.reporting.rejection_report import rejection_line
from atbench.reporting.results import bound_text, robustness_unknown
from atbench.reporting.wording import NOTHING, interval, percent

_REDRAWS_A_SECOND = 4  # a bar that is drawn more often costs the CPU runs it watches
_PIPE_WIDTH = 240
# Of a verification, what is shown even if it agrees; there are too many of the others.
_SHOWN, _MANY = (".accuracy", ".share"), ("classes.", "calibration.", "corruptions.rows")


def print_facts(facts: Sequence[tuple[str, str]], console: Console) -> None:
    """Print what is about to run, one fact a line, names quiet and aligned; called before anything runs."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        line = Text.assemble((f"{name:<{width}}  ", "dim"), value)
        # Off a terminal no line is broken: a folder's name must survive being copied from a log.
        line = line if not interactive(console) else _hanging(line, width + 2, console)
        console.print(line, soft_wrap=True, highlight=False)


def interactive(console: Console) -> bool:
    """Whether a live bar can be drawn. FORCE_COLOR makes rich see a terminal in a pipe, hence the look at the file."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _hanging(line: Text, indent: int, console: Console) -> Text:
    """A long value continues under its own start."""
    name, value = line[:indent], line[indent:]
    pieces = value.wrap(console, max(20, console.width - indent - 1))
    return Text("\n" + " " * indent).join([name + pieces[0], *pieces[1:]]) if pieces else line


class _Rate(ProgressColumn):
    """Images a second and the attack's share of the time: both as of now, both absent until known."""

    def render(self, task: Task) -> Text:
        rate, share = task.fields["rate"], task.fields["share"]
        parts = ([f"{rate:,.0f} img/s"] if rate else []) + (
            [f"attack {100 * share:.0f} %"] if share is not None else []
        )
        return Text("  ".join(parts), style="dim")


class Progress:
    """How far the run is: `with Progress(...) as progress: ... progress.advance(1, examples=128)`.

    `total_steps` and `epochs` are of the whole run; a resumed run says with `done` and `epoch` where it stands. `draw`
    is False on every rank but 0: such an object accepts all calls and shows nothing. `label` names the stage a line
    belongs to ("stage member0").
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
        self._bar: Bar | None = None
        if draw and interactive(self._console):
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f}", style="dim"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                _Rate(),
                console=self._console,
                refresh_per_second=_REDRAWS_A_SECOND,
                transient=True,
                expand=True,
            )
            now = self._describe(min(epoch + 1, epochs))
            self._task = self._bar.add_task(now, total=total_steps, completed=done, rate=0.0, share=None)

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, examples: int = 0) -> None:
        """Steps done, and the training images they used."""
        if self._bar is None:
            return
        self._examples += examples
        rate = self._examples / max(time.monotonic() - self._since, 1e-9)
        self._bar.update(self._task, advance=steps, rate=rate)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done: print its row of metrics.jsonl on one line."""
        if not self._draw:
            return
        self._print(epoch_line(row, self._label))
        if self._bar is not None:
            now = self._describe(min(row["epoch"] + 1, self._epochs))
            self._bar.update(self._task, description=now, share=row.get("attack_share"))
            self._examples, self._since = 0, time.monotonic()  # the rate is that of the epoch in progress

    def note(self, text: str) -> None:
        """One line that is worth reading among the epochs."""
        if self._draw:
            self._print(text)

    def _describe(self, epoch: int) -> str:
        return f"{self._label}  epoch {epoch}/{self._epochs}".strip()

    def _print(self, text: str) -> None:
        # Text, not str: nothing in a message may be taken for markup. Off a terminal a line stays one line.
        self._console.print(Text(text), soft_wrap=self._bar is None, highlight=False)


def epoch_line(row: Mapping[str, Any], label: str = "") -> str:
    """A row of metrics.jsonl for people; what the row lacks is left out."""
    train, val = row.get("train", {}), row.get("val", {})
    steps = val.get("k")
    parts = [label, f"epoch {row['epoch']}/{row['epochs']}"]
    parts += [f"loss {train['loss']:.3g}"] if train.get("loss") is not None else []
    parts += [f"train {percent(train['accuracy'])}"] if train.get("accuracy") is not None else []
    parts += [f"val clean {percent(val['clean'])}"] if val.get("clean") is not None else []
    parts += [f"val PGD{f'-{steps}' if steps else ''} {percent(val['pgd'])}"] if val.get("pgd") is not None else []
    parts += [f"all norms {percent(val['union'])}"] if val.get("union") is not None else []
    parts += [f"gap {100 * row['gap']:.1f}"] if row.get("gap") is not None else []
    parts += [f"{row['examples_per_second']:,.0f} img/s"] if row.get("examples_per_second") is not None else []
    parts += [f"attack {100 * row['attack_share']:.0f} %"] if row.get("attack_share") is not None else []
    return "  ".join(part for part in [*parts, "best" if row.get("best") else ""] if part)


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """Warnings, each on its line."""
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True, highlight=False)


def print_attack_result(name: str, record: Mapping[str, Any], console: Console) -> None:
    """An attack of an evaluation is done: what it broke, and what is left, on one line."""
    attacks = record["attacks"]
    last = attacks[-1] if attacks else None
    what = f"{last['name']} broke {last['broken']} of {last['tried']}" if last else "PGD sweep"
    cost = f"  {last['seconds']:.0f} s" if last else ""
    line = f"{name}  {what}  worst case so far {_cell(record['robust'])}{cost}"
    console.print(Text(line), soft_wrap=True, highlight=False)


class Heartbeat:
    """Says every so many seconds what an evaluation is at: an attack may take hours. Asked at every forward pass."""

    SECONDS = 20.0

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console, self.since = name, console, time.monotonic()

    def __call__(self, doing: str, passes: int) -> None:
        if time.monotonic() - self.since >= self.SECONDS:
            self.since = time.monotonic()
            line = f"{self.name}  {doing}, {passes:,} images forward so far"
            self.console.print(Text(line, style="dim"), soft_wrap=True, highlight=False)


def print_summary(
    records: Sequence[Mapping[str, Any]], folder: Path, commands: Sequence[str], console: Console
) -> None:
    """The end of a run: accuracies with interval and n, the audit's verdict, where everything is, what to type next."""
    strongest = max((step["k"] for record in records for step in record["steps"]), default=0)
    shown = sorted({20, strongest} & {step["k"] for record in records for step in record["steps"]})
    attacks = list(dict.fromkeys(each["name"] for record in records for each in record["attacks"]))
    heads = ["checkpoint", "epoch", "clean", *(f"PGD-{k}" for k in shown), *attacks]
    table = Table(*heads, *(["worst case"] if attacks else []), "n", box=None, header_style="dim", pad_edge=False)
    for record in records:
        steps = {step["k"]: step for step in record["steps"]}
        each = {entry["name"]: entry["alone"] or entry["after"] for entry in record["attacks"]}
        table.add_row(
            record["checkpoint"],
            NOTHING if record["epoch"] is None else str(record["epoch"]),
            _cell(record["clean"]),
            *(_cell(steps[k]) if k in steps else NOTHING for k in shown),
            *(_cell(each[name]) if name in each else NOTHING for name in attacks),
            *([NOTHING if robustness_unknown(record) else _cell(record["robust"])] if attacks else []),
            str(record["n"]),
        )
    print_table(table, console)
    for line in dict.fromkeys(bound_line(record) for record in records):
        console.print(Text(line, style="dim"), soft_wrap=True)
    for record in records:
        if record["n"] < record.get("of", record["n"]):
            part = f"{record['checkpoint']}: {record['n']} of {record['of']} images; a run's headline is of the most"
            console.print(Text(part, style="yellow"), soft_wrap=True, highlight=False)
        if robustness_unknown(record):
            console.print(Text(f"{record['checkpoint']}: {ASK_RAND}", style="bold red"), soft_wrap=True)
    for record in records:
        if reject := record.get("reject"):
            console.print(
                Text(f"reject  {rejection_line(record['checkpoint'], reject)}"), soft_wrap=True, highlight=False
            )
    for record in records:
        print_audit(record, console)
    print_warnings(dict.fromkeys(warning for record in records for warning in record.get("warnings", ())), console)
    console.print(Text.assemble(("folder  ", "dim"), str(folder)), soft_wrap=True, highlight=False)
    for number, command in enumerate(commands):
        console.print(
            Text.assemble(("        " if number else "next    ", "dim"), command), soft_wrap=True, highlight=False
        )


def bound_line(record: Mapping[str, Any]) -> str:
    """What the robust figures of a record are."""
    return f"{bound_text(record)}; brackets: 95 % interval"


def print_audit(record: Mapping[str, Any], console: Console) -> None:
    """The audit's verdict, and every check that raised a flag, on a line each."""
    audit = record["audit"]
    if not audit["checks"]:
        return
    style = "green" if audit["trusted"] else "bold red"
    console.print(Text(f"audit   {record['checkpoint']}: {audit['sentence']}", style=style), soft_wrap=True)
    for check in audit["checks"]:
        if check["verdict"] == "flag":
            console.print(Text(f"        {check['name']}: {check['sentence']}", style="red"), soft_wrap=True)


def print_verification(numbers: Sequence[tuple[str, Any]], consistent: Sequence[str], console: Console) -> None:
    """The accuracies of records beside what was found again, and whatever differs; of the rest, how much it was.

    consistent: what could be held against a second copy only.
    """
    table = Table("record", "value", "recorded", "again", "", box=None, header_style="dim", pad_edge=False)
    for name, number in numbers:
        if not number.agrees or (number.name.endswith(_SHOWN) and not number.name.startswith(_MANY)):
            agrees = "agrees" if number.agrees else "DIFFERS"
            table.add_row(name, number.name, _value(number.claimed), _value(number.again), agrees)
    print_table(table, console)
    agree = sum(number.agrees for _, number in numbers)
    console.print(Text(f"{agree} of {len(numbers)} values and arrays agree; not looked at: times and counts of passes"))
    console.print(Text(f"held against a second copy only: {'; '.join(consistent)}"), soft_wrap=True, highlight=False)


def _value(value: object) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, float) and 0 <= value <= 1 else str(value)


def print_table(table: Table, console: Console) -> None:
    """Print a table; in a pipe, whose width means nothing, without breaking its cells."""
    wide = console if console.is_terminal else Console(file=console.file, width=_PIPE_WIDTH)
    wide.print(table, highlight=False)


def _cell(entry: Mapping[str, Any]) -> str:
    return f"{percent(entry['accuracy'])} {interval(entry['low'], entry['high'])}"
