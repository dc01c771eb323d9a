"""The functions behind the verbs, whose modules bring torch along."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Callable
from typing import Any


def workflow(name: str) -> Callable[[Any], float]:
    """The function `name` of the module of that name in `atbench.workflows`.

    Nothing is collected while it is imported, nor looked through afterwards: torch makes a million objects and no
    garbage, and looking through them again and again takes a fifth of the import, and half a second of a short run.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(f"atbench.workflows.{name}")
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries in C++ look for leaks at the end
        if enabled:
            gc.enable()
    found: Callable[[Any], float] = getattr(module, name)
    return found
