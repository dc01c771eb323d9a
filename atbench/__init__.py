"""Adversarial training as one formula: a method, an attack, a model and a data set, each chosen on the command line.

The functions below are the Python interface (docs/python.md); torch is imported with the first that is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atbench.api import RobustAccuracy, attack, list_methods, list_options, load, robust_accuracy, train

__version__ = "0.1.0"
__all__ = ["RobustAccuracy", "attack", "list_methods", "list_options", "load", "robust_accuracy", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("atbench.api"), name)
    raise AttributeError(f"module 'atbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
