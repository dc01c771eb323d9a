"""Terminal output: facts and results. stdout is for results; what a run is doing (`progress`) goes to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atbench.reporting.headline import ASK_RAND
from atbench.reporting.members_report import terminal_table, transfer_attack
from atbench.reporting.rejection_report import rejection_line
from atbench.reporting.results import bound_text, robustness_unknown
from atbench.reporting.unforeseen_report import distortion_table, unforeseen_line
from atbench.reporting.wording import NOTHING, accuracy_text

_PIPE_WIDTH = 240
# Fields of a verification that are printed even if they agree, and those of them that are too many.
_SHOWN, _MANY = (".accuracy", ".share"), ("classes.", "calibration.", "corruptions.rows", "members.", "unforeseen.")


def print_facts(facts: Sequence[tuple[str, str]], console: Console) -> None:
    """Print names and values, one pair a line, aligned."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        line = Text.assemble((f"{name:<{width}}  ", "dim"), value)
        # Off a terminal no line is broken, so that a folder's name can be copied from a log.
        print_line(_hanging(line, width + 2, console) if interactive(console) else line, console)


def print_line(text: str | Text, console: Console, style: str = "") -> None:
    """Print one line of text; nothing in it is taken for markup."""
    console.print(Text(text, style=style) if isinstance(text, str) else text, soft_wrap=True)


def interactive(console: Console) -> bool:
    """Whether a live bar can be drawn. FORCE_COLOR makes rich see a terminal in a pipe, hence the look at the file."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _hanging(line: Text, indent: int, console: Console) -> Text:
    """A long value continues under its own start."""
    name, value = line[:indent], line[indent:]
    pieces = value.wrap(console, max(20, console.width - indent - 1))
    return Text("\n" + " " * indent).join([name + pieces[0], *pieces[1:]]) if pieces else line


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        print_line(f"warning: {warning}", console, "yellow")


def print_attack_result(name: str, record: Mapping[str, Any], console: Console) -> None:
    """Print what the last attack of an evaluation broke, and the worst case so far, on one line."""
    last = record["attacks"][-1] if record["attacks"] else None
    attack = f"{last['name']} broke {last['broken']} of {last['tried']}" if last else "PGD sweep"
    cost = f"  {last['seconds']:.0f} s" if last else ""
    print_line(f"{name}  {attack}  worst case so far {accuracy_text(record['robust'])}{cost}", console)


def print_summary(
    records: Sequence[Mapping[str, Any]], folder: Path, commands: Sequence[str], console: Console
) -> None:
    """Print the results of a run: accuracies with interval and n, audit, warnings, folder, report, next commands."""
    swept = {step["k"] for record in records for step in record["steps"]}
    shown = sorted({20, max(swept, default=0)} & swept)
    attacks = list(dict.fromkeys(entry["name"] for record in records for entry in record["attacks"]))
    heads = ["checkpoint", "epoch", "clean", *(f"PGD-{k}" for k in shown), *attacks]
    table = Table(*heads, *(["worst case"] if attacks else []), "n", box=None, header_style="dim", pad_edge=False)
    for record in records:
        steps = {step["k"]: step for step in record["steps"]}
        by_attack = {entry["name"]: entry["alone"] or entry["after"] for entry in record["attacks"]}
        table.add_row(
            record["checkpoint"],
            NOTHING if record["epoch"] is None else str(record["epoch"]),
            accuracy_text(record["clean"]),
            *(accuracy_text(steps[k]) if k in steps else NOTHING for k in shown),
            *(accuracy_text(by_attack[name]) if name in by_attack else NOTHING for name in attacks),
            *([NOTHING if robustness_unknown(record) else accuracy_text(record["robust"])] if attacks else []),
            str(record["n"]),
        )
    print_table(table, console)
    for line in dict.fromkeys(bound_line(record) for record in records):
        print_line(line, console, "dim")
    for record in records:
        name = record["checkpoint"]
        if record["n"] < record.get("of", record["n"]):
            subset = f"{name}: evaluated on {record['n']} of {record['of']} images; the report quotes the most images"
            print_line(subset, console, "yellow")
        if robustness_unknown(record):
            print_line(f"{name}: {ASK_RAND}", console, "bold red")
    for record in records:
        if reject := record.get("reject"):
            print_line(f"reject  {rejection_line(record['checkpoint'], reject)}", console)
    print_transfer(records, console)
    for record in records:
        if unforeseen := record.get("unforeseen"):
            print_line(f"unforeseen  {unforeseen_line(record['checkpoint'], unforeseen)}", console)
            print_table(distortion_table(unforeseen), console)
    for record in records:
        print_audit(record, console)
    print_warnings(dict.fromkeys(warning for record in records for warning in record.get("warnings", ())), console)
    print_line(Text.assemble(("folder  ", "dim"), str(folder)), console)
    print_line(Text.assemble(("report  ", "dim"), str(folder / "report.html")), console)
    for number, command in enumerate(commands):
        print_line(Text.assemble(("        " if number else "next    ", "dim"), command), console)


def print_transfer(records: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the transfer between an ensemble's members, once for checkpoints with equal figures."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for record in records:
        if members := record.get("members"):
            if not found or found[-1][0] != members:
                found.append((members, []))
            found[-1][1].append(record["checkpoint"])
    for members, names in found:
        what = "; accuracy of each member (column) under the attack on one (row)" if members["n"] else ""
        print_line(f"members {' = '.join(names)}: {transfer_attack(members)}{what}", console)
        if members["n"]:
            print_table(terminal_table(members), console)


def bound_line(record: Mapping[str, Any]) -> str:
    """The attacks behind a record's robust accuracy, and what the brackets are."""
    return f"{bound_text(record)}; brackets: 95 % interval"


def print_audit(record: Mapping[str, Any], console: Console) -> None:
    """Print the audit's verdict, and every flagged check on a line of its own."""
    audit = record["audit"]
    if not audit["checks"]:
        return
    verdict = f"audit   {record['checkpoint']}: {audit['sentence']}"
    print_line(verdict, console, "green" if audit["trusted"] else "bold red")
    for check in audit["checks"]:
        if check["verdict"] == "flag":
            print_line(f"        {check['name']}: {check['sentence']}", console, "red")


def print_verification(checks: Sequence[tuple[str, Any]], consistent: Sequence[str], console: Console) -> None:
    """Print recorded and recomputed accuracies, everything that differs, and how much agrees.

    checks: (record, field check). consistent: what is only compared with a second copy.
    """
    table = Table("record", "value", "recorded", "recomputed", "", box=None, header_style="dim", pad_edge=False)
    for name, check in checks:
        if not check.agrees or (check.name.endswith(_SHOWN) and not check.name.startswith(_MANY)):
            agrees = "agrees" if check.agrees else "DIFFERS"
            table.add_row(name, check.name, _value(check.recorded), _value(check.recomputed), agrees)
    print_table(table, console)
    agree = sum(check.agrees for _, check in checks)
    console.print(Text(f"{agree} of {len(checks)} values and arrays agree; times and pass counts are not compared"))
    print_line(f"compared with a second copy only: {'; '.join(consistent)}", console)


def _value(value: object) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, float) and 0 <= value <= 1 else str(value)


def print_table(table: Table, console: Console) -> None:
    """Print a table; in a pipe, whose width means nothing, without breaking its cells."""
    wide = console if console.is_terminal else Console(file=console.file, width=_PIPE_WIDTH)
    wide.print(table, highlight=False)
