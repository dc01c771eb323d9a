"""Text of numbers and settings in the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
NOTHING = "—"
NO_PROOF = "A stronger attack can only lower these robust accuracies; they do not prove robustness."


def percent(value: float | None) -> str:
    """An accuracy in [0, 1] as `61.0 %`."""
    return NOTHING if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def interval(low: float, high: float) -> str:
    """A 95 % interval in percent, `[56.4, 65.4]`."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def with_interval(value: float, low: float, high: float) -> str:
    """An accuracy with its interval, `61.0 % [56.4, 65.4]`."""
    return f"{percent(value)} {interval(low, high)}"


def accuracy_text(entry: Mapping[str, float]) -> str:
    """An accuracy of a record with its interval."""
    return with_interval(entry["accuracy"], entry["low"], entry["high"])


def mean_and_spread(mean: float, spread: float | None) -> str:
    """`61.0 ± 1.2`, in percent; without a spread (one seed) only the value."""
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"


def points(value: float | None) -> str:
    """A difference of two accuracies in percentage points."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def number_text(value: object) -> str:
    """A setting: floats with six digits, everything else as Python writes it."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.6g}"


def both_forms(value: object) -> str:
    """A radius in pixel levels and in units of the range: `8/255 (0.0314)`; `0.3 (76.5/255)` if not whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    levels = 255 * float(value)
    whole = round(levels)
    if abs(levels - whole) < 1e-4 and len(f"{value:.10g}") > 6:
        return f"{whole}/255 ({value:.4g})"
    return f"{value:.4g} ({levels:.4g}/255)"


def short_eps(value: object) -> str:
    """A radius in short form: levels of 255 where they are whole and few, else the number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NOTHING
    levels = round(255 * value)
    return f"{levels}/255" if levels and abs(255 * value - levels) < 1e-4 and levels <= 32 else f"{value:.4g}"


def norm_name(name: object) -> str:
    """`linf` as `L∞`; other names as they are."""
    return NORMS.get(str(name), str(name))


def duration(seconds: float | None) -> str:
    """Seconds as `12.3 s`, `4 min 05 s`, `2 h 07 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def file_size(count: int) -> str:
    """Bytes as `12 KB`, `1.5 MB`, `2.1 GB`."""
    if count < 1e6:
        return f"{count} B" if count < 1000 else f"{count / 1e3:.0f} KB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def options_text(node: Mapping[str, object]) -> str:
    """The options of a config node on one line, `beta=6, norm=linf`; without its `about` and its class."""
    flat = flatten({key: value for key, value in node.items() if key not in ("about", "_target_", "_partial_")})
    parts = []
    for key, value in flat.items():
        if key.endswith("._target_"):
            parts.append(f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}")
        elif not key.endswith("._partial_") and ".about." not in key:
            parts.append(f"{key}={'null' if value is None else number_text(value)}")
    return ", ".join(parts)


def flatten(node: Mapping[str, object], separator: str = ".") -> dict[str, object]:
    """Nested mappings as one, keys joined by `separator`; lists stay values, empty mappings are dropped."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}{separator}{inner}": leaf for inner, leaf in flatten(value, separator).items()})
        else:
            flat[str(key)] = value
    return flat
