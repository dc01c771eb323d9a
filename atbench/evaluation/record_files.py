"""The files of a record: figures, outcomes, adversarial images, and the configuration that all of it follows from."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from atbench.config.renamed import renamed_config, renamed_record
from atbench.errors import DataError
from atbench.evaluation.attack_result import Array
from atbench.runs.run_dir import EARLIER, write_bytes, write_json, write_text

KINDS = ("json", "npz", "examples.npz", "yaml")


def save_record(
    folder: Path,
    name: str,
    record: dict[str, Any],
    arrays: dict[str, Array],
    images: dict[str, Array],
    settings: dict[str, Any],
) -> None:
    """Write `<name>.yaml` and `<name>.npz`, then `<name>.json`: a record never stands without its outcomes.

    An earlier record of the same checkpoint is moved to `earlier/`, with a number: evaluations are not lost.
    `images`: the adversarial ones, into `<name>.examples.npz`; none are kept where it is empty. `settings`: the
    configuration that all of it follows from, into `<name>.yaml`.
    """
    if (folder / f"{name}.json").exists():
        earlier = folder / EARLIER
        earlier.mkdir(exist_ok=True)
        number = len(list(earlier.glob(f"{name}-*.json"))) + 1
        for kind in KINDS:
            if (path := folder / f"{name}.{kind}").exists():
                path.replace(earlier / f"{name}-{number}.{kind}")
    write_text(folder / f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    write_bytes(folder / f"{name}.npz", _npz_bytes(arrays))
    if images:
        write_bytes(folder / f"{name}.examples.npz", _npz_bytes(images))
    kept = f"{name}.examples.npz" if images else None
    write_json(folder / f"{name}.json", {**record, "outcomes": f"{name}.npz", "examples": kept})
    (folder / f"{name}.partial.json").unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """A record. Raises DataError where it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DataError("verify", path, f"is not JSON ({fault})", "restore it, or evaluate again") from fault
    if not isinstance(content, dict):
        raise DataError("verify", path, "is no record", "restore it, or evaluate again")
    return renamed_record(content)


def read_settings(path: Path) -> dict[str, Any]:
    """The configuration beside a record. Raises DataError where it is gone or damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as fault:
        why = f"the configuration that the record follows from cannot be read ({type(fault).__name__})"
        raise DataError("verify", path, why, "restore it, or evaluate again") from fault
    if not isinstance(content, dict):
        raise DataError("verify", path, "is no configuration", "restore it, or evaluate again")
    return renamed_config(content)


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an npz beside a record. Raises DataError where it is gone or damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise DataError("verify", path, f"cannot be read ({said})", "restore it, or evaluate again") from fault


def _npz_bytes(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
