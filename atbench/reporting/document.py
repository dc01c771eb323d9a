"""Blocks of a report, from which the templates make both Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from atbench.reporting.figure_format import Drawing


@dataclass(frozen=True)
class Heading:
    """A section, or with `part` a part of one. folded: the page shows its content when it is asked for."""

    text: str
    part: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Notice:
    """A warning or caveat. grave: it puts the accuracies themselves in doubt."""

    text: str
    grave: bool = False


@dataclass(frozen=True)
class Card:
    """A figure to be seen first, and lines that say what it is. tone: `good`, `bad` or nothing."""

    title: str
    value: str
    lines: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Cards:
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns. linked: the names are paths beside the report."""

    rows: tuple[tuple[str, str], ...]
    linked: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell; `value` is its sort key where the text would sort wrongly."""

    text: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells. name: that of its files in `tables/`; without one it has none."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    name: str = ""

    @property
    def files(self) -> dict[str, str]:
        return {"CSV": f"tables/{self.name}.csv", "LaTeX": f"tables/{self.name}.tex"}


def table(columns: Sequence[str], rows: Iterable[Iterable[Cell | str]], name: str = "") -> Table:
    """A table in which a plain text is a cell without a sort key."""
    cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(tuple(columns), tuple(cells), name)


@dataclass(frozen=True)
class Code:
    """Lines to copy and run."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Figure:
    """A drawing, embedded in HTML and written to `pictures/`. wide: of a page's width, not of a column's."""

    name: str
    drawing: Drawing
    caption: str
    wide: bool = False

    def formats(self, every: bool) -> tuple[str, ...]:
        """Suffixes of its files: every format, or that of the page alone."""
        return self.drawing.formats if every else (self.drawing.page_format,)

    def files(self, every: bool) -> dict[str, str]:
        """Relative paths by the name of the format."""
        return {suffix.upper(): f"pictures/{self.name}.{suffix}" for suffix in self.formats(every)}


Block = Heading | Paragraph | Notice | Cards | Facts | Table | Code | Figure


def kind(block: Block) -> str:
    """The name of a block's class, which is all that a template can ask for."""
    return type(block).__name__


@dataclass(frozen=True)
class Section:
    """The blocks under a heading, which is None for those above the first one."""

    heading: Heading | None
    blocks: tuple[Block, ...]

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", self.heading.text.lower()) if self.heading else ""

    @property
    def rows(self) -> list[list[Block]]:
        """The blocks, those figures together that follow each other."""
        return [list(blocks) for _, blocks in groupby(self.blocks, lambda block: isinstance(block, Figure))]


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]
    subtitle: str = ""

    @property
    def sections(self) -> list[Section]:
        found = [Section(None, ())]
        for block in self.blocks:
            if isinstance(block, Heading) and not block.part:
                found.append(Section(block, ()))
            else:
                found[-1] = Section(found[-1].heading, (*found[-1].blocks, block))
        return found

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Figure))

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Table) and block.name)
