"""The functions behind the verbs, whose modules bring torch along."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any


def workflow(name: str) -> Callable[[Any], float]:
    """The function `name` of the module of that name in `atbench.workflows`.

    Nothing is collected while it is imported: torch makes a million objects and no garbage, and looking through them
    again and again takes a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(f"atbench.workflows.{name}")
    finally:
        if enabled:
            gc.enable()
    found: Callable[[Any], float] = getattr(module, name)
    return found
