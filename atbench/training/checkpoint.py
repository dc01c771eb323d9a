"""Checkpoints with a checksum.

A checkpoint is what `torch.save` writes, a zip archive, with its own SHA-256 as the archive's comment:
`torch.load(path, weights_only=True)` opens it anywhere; `read` refuses a truncated or corrupted one.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from atbench.errors import DataError
from atbench.runs.run_dir import write_bytes

LENGTH = 64  # of a SHA-256 in hexadecimal
SCHEMA = 1  # version of a checkpoint's content


def encode(content: dict[str, Any]) -> memoryview:
    """Serialise tensors, numbers, strings and containers of them, into one buffer: a checkpoint may be gigabytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
    # The last two bytes of a zip archive without a comment say that its comment has length 0.
    buffer.seek(-2, io.SEEK_END)
    assert buffer.read() == b"\0\0"
    buffer.seek(-2, io.SEEK_END)
    buffer.write(LENGTH.to_bytes(2, "little") + digest)
    return buffer.getbuffer()


def whole(data: bytes | memoryview) -> bool:
    """Whether the bytes are those that `encode` wrote."""
    if len(data) < LENGTH + 2 or data[-LENGTH - 2 : -LENGTH] != LENGTH.to_bytes(2, "little"):
        return False
    digest = hashlib.sha256(memoryview(data)[: -LENGTH - 2])
    digest.update(b"\0\0")
    return digest.hexdigest().encode() == data[-LENGTH:]


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write aside, sync, rename. With `keep_previous` the file that was there stays beside it as `<name>.prev.pt`."""
    data = encode({"schema": SCHEMA, **content})
    write_bytes(path, data, previous=previous(path) if keep_previous else None)


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def read(path: Path, device: torch.device | str = "cpu", needs: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint of atbench. Raises DataError if it is absent, damaged, of another program or version, or lacks
    one of the keys `needs`.
    """
    return _opened(path, _undamaged(path), device, needs)


def latest(
    path: Path, device: torch.device | str = "cpu", needs: Collection[str] = ()
) -> tuple[dict[str, Any], str | None]:
    """Read `path`, or, if it is damaged, the checkpoint before it. Returns the content and a warning, if any."""
    try:
        data, used, warning = _undamaged(path), path, None
    except DataError as damage:
        used = previous(path)
        if not used.is_file():
            raise
        data, warning = _undamaged(used), f"{damage.value} {damage.why}; going on from {used.name}"
    return _opened(used, data, device, needs), warning


def _undamaged(path: Path) -> bytes:
    if not path.is_file():
        raise DataError("checkpoint", path, "there is no such file", "check the path")
    data = path.read_bytes()
    if not whole(data):
        fix = "use another checkpoint; of another program: model._target_=... checkpoint=FILE dataset=NAME"
        raise DataError("checkpoint", path, "is damaged: its checksum does not match", fix)
    return data


def _opened(path: Path, data: bytes, device: torch.device | str, needs: Collection[str]) -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except pickle.UnpicklingError as fault:
        raise DataError("checkpoint", path, "holds more than tensors and numbers", "use another checkpoint") from fault
    known = content.get("schema") if isinstance(content, dict) else None
    if known != SCHEMA:
        why = f"is of schema {known}, and this version of atbench reads {SCHEMA}"
        raise DataError("checkpoint", path, why, "use the version that wrote it")
    if lacking := sorted(set(needs) - content.keys()):
        raise DataError("checkpoint", path, f"lacks its part '{lacking[0]}'", "use another checkpoint")
    return dict(content)
