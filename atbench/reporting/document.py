"""Blocks of a report, from which both Markdown and HTML are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atbench.reporting.figure_format import Drawing


@dataclass(frozen=True)
class Heading:
    """A section, or with `part` a part of one."""

    text: str
    part: bool = False


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Notice:
    """A warning or caveat. grave: it puts the accuracies themselves in doubt."""

    text: str
    grave: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One cell; `value` is its sort key where the text would sort wrongly."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def table(columns: Sequence[str], rows: Iterable[Iterable[Cell | str]]) -> Table:
    """A table in which a plain text is a cell without a sort key."""
    cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(tuple(columns), tuple(cells))


@dataclass(frozen=True)
class Code:
    """Lines to copy and run."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Figure:
    """A drawing, written as `pictures/<name>.png` and embedded in HTML."""

    name: str
    drawing: Drawing
    caption: str


Block = Heading | Paragraph | Notice | Facts | Table | Code | Figure


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Figure))
