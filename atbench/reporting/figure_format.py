"""Canvas and colours of figures, and their two forms: SVG for HTML (ink is `currentColor`), PNG on white elsewhere.

matplotlib's object interface shares no state and opens no window. The same data give the same bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1e23"
SHADES = (
    "#2f7fc1", "#d9772b", "#3f9b6c", "#b3558c", "#7d73cf", "#9c7c22", "#3aa3ad", "#c4505a", "#7f8a96", "#5f9e2f",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG and, where it has lines rather than pixels, as inline SVG."""

    svg: str | None
    png: bytes


def canvas(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure of rows × columns panels, and these one after another."""
    from matplotlib.figure import Figure  # half a second and more: only what draws pays for it

    figure = Figure(figsize=inches, dpi=130, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(True, color=INK, alpha=0.13, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK, labelsize=8)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
    return figure, axes


def shade(number: int) -> str:
    """The colour of a figure's line `number`."""
    return SHADES[number % len(SHADES)]


def raster(figure: Figure) -> Drawing:
    """A figure of pixels, as PNG alone."""
    return Drawing(svg=None, png=_png(figure))


def vector(figure: Figure, name: str) -> Drawing:
    """A figure of lines, as SVG and PNG; `name` is unique on its page."""
    import matplotlib

    png = _png(figure)
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    buffer = io.StringIO()
    # Text stays text (small, searchable, in the page's font); the salt makes element names the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Drawing(svg=_inline(buffer.getvalue(), name), png=png)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _inline(svg: str, name: str) -> str:
    """An SVG file as an HTML element: no prologue, no metadata, the page's ink, unique ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
