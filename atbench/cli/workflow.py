"""The functions behind the verbs, whose modules bring torch along."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any


def workflow(name: str) -> Callable[[Any], float]:
    """The function `name` of the module of that name in `atbench.workflows`."""
    module = f"atbench.workflows.{name}"
    if "torch" not in sys.modules:
        _import_uncollected(module)
    found: Callable[[Any], float] = getattr(importlib.import_module(module), name)
    return found


def _import_uncollected(module: str) -> None:
    """Import without garbage collection, which does not look through what was imported afterwards either.

    torch makes hundreds of thousands of objects and no garbage: looking through them again and again takes a fifth of
    the import, and half a second of a short run. Only ever at torch's first import: what a later job of a sweep left
    behind has to be collected.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(module)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries in C++ look for leaks at the end
        if enabled:
            gc.enable()
