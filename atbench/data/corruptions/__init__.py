"""Common corruptions, generated offline from their definitions: see `table` for what they can be compared with."""

from atbench.data.corruptions.table import CORRUPTIONS, CorruptedImages, corrupt

__all__ = ["CORRUPTIONS", "CorruptedImages", "corrupt"]
