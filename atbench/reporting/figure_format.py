"""Canvas, colours and files of figures, in the width of a paper's column so that page and print have readable type.

matplotlib's object interface shares no state and opens no window. The same data give the same bytes.
"""

from __future__ import annotations

import io
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1e23"
COLUMN, PAGE = 3.4, 7.0  # inches
# Okabe & Ito 2008, without black and yellow: told apart with every kind of colour blindness. On a grey printer the
# markers tell them apart.
SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f8a96")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LEGEND_COLUMN = 26  # characters of a label from which a legend has one column


class Drawing:
    """A figure in the formats of its files, each drawn when it is asked for.

    Args:
        name: of a figure of lines rather than pixels, unique on its page: only such a figure is drawn as SVG too.
    """

    def __init__(self, figure: Figure, name: str | None = None) -> None:
        self.figure, self.name = figure, name
        _lay_out(figure)

    @property
    def page_format(self) -> str:
        """In which format a page shows it."""
        return "png" if self.name is None else "svg"

    @property
    def formats(self) -> tuple[str, ...]:
        return ("png", "pdf") if self.name is None else ("png", "svg", "pdf")

    def file(self, suffix: str) -> bytes:
        """The content of a file of one of the `formats`, for use outside of the page."""
        if suffix == "svg":
            return self.svg.replace("currentColor", INK).encode()
        return self.png if suffix == "png" else _saved(self.figure, suffix)

    @cached_property
    def png(self) -> bytes:
        return _saved(self.figure, "png")

    @cached_property
    def svg(self) -> str:
        """As an HTML element, without a background and in the page's ink."""
        assert self.name is not None
        patches = [self.figure.patch, *(axis.patch for axis in self.figure.axes)]
        before = [patch.get_alpha() for patch in patches]
        for patch in patches:
            patch.set_alpha(0)
        svg = _saved(self.figure, "svg", self.name).decode()
        for patch, alpha in zip(patches, before, strict=True):
            patch.set_alpha(alpha)
        return _inline(svg, self.name)


def canvas(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure of rows × columns panels, and these one after another."""
    from matplotlib.figure import Figure  # half a second and more: only what draws pays for it

    figure = Figure(figsize=inches, dpi=200, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(True, color=INK, alpha=0.13, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK, labelsize=7)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(color=INK, fontsize=8)
    return figure, axes


def shade(number: int) -> str:
    """The colour of a figure's line `number`."""
    return SHADES[number % len(SHADES)]


def line(number: int) -> dict[str, Any]:
    """Colour and marker of a figure's line `number`."""
    marker = MARKERS[number % len(MARKERS)]
    return {"color": shade(number), "marker": marker, "markersize": 3.2, "linewidth": 1.3}


def legend(figure: Figure, axis: Axes) -> None:
    """The labels of an axis above it, where they hide no line; the figure grows by their height."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        columns = 1 if max(map(len, labels)) >= _LEGEND_COLUMN else 3 if max(map(len, labels)) < 14 else 2
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.15 * -(-len(labels) // columns))
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=7, labelcolor=INK,
            borderaxespad=0.1, columnspacing=1.2, handlelength=1.8,
        )  # fmt: skip


def _lay_out(figure: Figure) -> None:
    """Place everything once and for all, which every way of saving would do again."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")


#: What would make the same figure another file tomorrow.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}


def _saved(figure: Figure, suffix: str, salt: str = "") -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Text stays text (small, searchable, in the page's font); the salt makes element names the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "pdf.fonttype": 42}):
        figure.savefig(buffer, format=suffix, metadata=_METADATA[suffix])
    return buffer.getvalue()


def _inline(svg: str, name: str) -> str:
    """An SVG file as an HTML element: no prologue, no metadata, the page's ink, unique ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
