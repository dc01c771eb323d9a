"""Per-example results on the disk, from which an interrupted evaluation resumes.

Each measurement (an attack with its settings) has a folder named by a hash of all that its outcome depends on: weights,
data, settings and seed. It holds parts, each a few batches of one process. Because an example's outcome depends on no
other example, parts may come from different batch sizes and numbers of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atbench.evaluation.attack_result import Array
from atbench.evaluation.eval_model import EvalModel
from atbench.runs.run_dir import write_bytes

Work = Callable[[Tensor], Mapping[str, Tensor]]
Part = dict[str, Array]  # columns with one entry an example


class ResultCache:
    """Cache of per-example results.

    Args:
        folder: where the parts go; None keeps them in memory, which several processes cannot share.
        key: what every measurement depends on: checksums of weights and data, the seed, how many images.
    """

    SECONDS = 20.0  # between two writes: what a kill may cost

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, dict(key)

    def measure(
        self, eval_model: EvalModel, name: str, settings: Mapping[str, Any], rows: Tensor, work: Work, label: str = ""
    ) -> dict[str, Array]:
        """Call `work(rows)` batch by batch for those of `rows` that no part has yet. `label`: what is shown for `name`.

        `work` returns tensors with one entry an example. Returns them for all of `rows`, in their order, on every
        process, and each example's cost: `seconds`, `forwards`, `gradients` (its share of its batch).
        """
        folder = self._measurement_dir(name, settings)
        before = _read_parts(folder) if folder else []
        cached, broken = _rows(before), _broken(before)
        barrier = torch.zeros(1, device=eval_model.device)
        eval_model.reduce(barrier)  # every process has read the same, before any writes
        parts, done, written_at = list[Part](), len(cached), time.monotonic()

        def measure_batch(batch: Tensor) -> Part:
            eval_model.doing(label or name, done, len(rows), broken)
            return _measure_batch(eval_model, batch, work)

        for batch, part in eval_model.map_batches(rows[~torch.isin(rows, torch.from_numpy(cached))], measure_batch):
            parts.append(part)
            done += eval_model.world * len(batch)
            if (more := _broken(parts[-1:])) is not None:
                broken = (broken or 0) + eval_model.world * more  # the other processes' shares are about the same
            if folder and time.monotonic() - written_at > self.SECONDS:
                _write_part(folder, eval_model.rank, parts)
                parts, written_at = [], time.monotonic()
        if folder:
            _write_part(folder, eval_model.rank, parts)
            eval_model.reduce(barrier)  # every process has written
            parts = _read_parts(folder)
        return _select(parts, rows)

    def clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _measurement_dir(self, name: str, settings: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps({"name": name, "settings": dict(settings), **self.key}, sort_keys=True, default=str)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _measure_batch(eval_model: EvalModel, batch: Tensor, work: Work) -> Part:
    start, passes, gradients = time.monotonic(), eval_model.passes, eval_model.gradients
    columns = {key: value.detach().cpu().numpy() for key, value in work(batch).items()}
    cost = {
        "seconds": time.monotonic() - start,
        "forwards": eval_model.passes - passes,
        "gradients": eval_model.gradients - gradients,
    }
    shares = {key: np.full(len(batch), value / len(batch)) for key, value in cost.items()}
    return {"rows": batch.numpy(), **columns, **shares}


def _rows(parts: list[Part]) -> Array:
    return np.concatenate([part["rows"] for part in parts]) if parts else np.zeros(0, np.int64)


def _broken(parts: list[Part]) -> int | None:
    """How many examples the parts have broken; None for a measurement that breaks none."""
    counts = [int(part["broken"].sum()) for part in parts if "broken" in part]
    return sum(counts) if counts else None


def _write_part(folder: Path, rank: int, parts: list[Part]) -> None:
    """Write parts as one file."""
    if parts:
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **joined)
        write_bytes(folder / f"{int(joined['rows'][0])}-{len(joined['rows'])}-{rank}.npz", buffer.getvalue())


def _select(parts: list[Part], rows: Tensor) -> Part:
    if not len(rows):
        return {}
    order = {int(row): position for position, row in enumerate(_rows(parts))}
    index = np.array([order[int(row)] for row in rows])
    return {key: np.concatenate([part[key] for part in parts])[index] for key in parts[0] if key != "rows"}


def _read_parts(folder: Path) -> list[Part]:
    """All readable parts; one that was cut off is removed."""
    parts = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts.append({name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    return parts
