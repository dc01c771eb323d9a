"""Common corruptions, generated from their definitions; `table` says what they can be compared with."""

from atbench.data.corruptions.table import CORRUPTIONS, CorruptedImages, corrupt
