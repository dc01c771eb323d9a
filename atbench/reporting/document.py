"""A report as a list of blocks, so that the Markdown and the HTML of one report cannot say different things."""

from __future__ import annotations

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
    """Something the reader must not overlook: a warning, the words "upper bound".

    grave: it puts the figures themselves in doubt.
    """

    text: str
    grave: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and what they are, in two columns."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One cell; `value` is what its column is sorted by where the text alone would sort wrongly."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy and run."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Figure:
    """A drawing kept beside the report as `pictures/<name>.png`; HTML has it inside."""

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
