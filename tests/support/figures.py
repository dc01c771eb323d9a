"""Whether figures are rendered, which is four fifths of a short run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from atbench.reporting import example_grid, figure_format, plots
from atbench.reporting.figure_format import Drawing


@contextmanager
def unrendered() -> Iterator[None]:
    """Figures are made up in the block, and not rendered."""
    with _rendered_by(lambda figure, name: Drawing("<svg/>", b"\x89PNG"), lambda figure: Drawing(None, b"\x89PNG")):
        yield


@contextmanager
def rendered() -> Iterator[None]:
    """Figures are rendered in the block, as a user has them."""
    with _rendered_by(figure_format.vector, figure_format.raster):
        yield


@contextmanager
def _rendered_by(vector: Any, raster: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (plots, example_grid):
            patch.setattr(module, "vector", vector)
        patch.setattr(example_grid, "raster", raster)
        yield
