"""Whether figures are rendered, which is four fifths of a short run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from atbench.reporting import figure_format

_LAY_OUT, _SAVED = figure_format._lay_out, figure_format._saved


@contextmanager
def unrendered() -> Iterator[None]:
    """Figures are made up in the block, and not rendered."""
    made_up = {"png": b"\x89PNG", "svg": b"<svg/>", "pdf": b"%PDF"}
    with _rendered_by(lambda figure: None, lambda figure, suffix, salt="": made_up[suffix]):
        yield


@contextmanager
def rendered() -> Iterator[None]:
    """Figures are rendered in the block, as a user has them."""
    with _rendered_by(_LAY_OUT, _SAVED):
        yield


@contextmanager
def _rendered_by(lay_out: Any, saved: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_format, "_lay_out", lay_out)
        patch.setattr(figure_format, "_saved", saved)
        yield
