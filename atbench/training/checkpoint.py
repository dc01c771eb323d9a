"""Checkpoints that know whether they are whole.

A checkpoint is what `torch.save` writes, a zip archive, with its own SHA-256 as the archive's comment:
`torch.load(path, weights_only=True)` opens it anywhere, and a truncation or a flipped bit is noticed here.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from atbench.errors import DataError
from atbench.folder import write_bytes

LENGTH = 64  # of a SHA-256 in hexadecimal


def encode(content: dict[str, Any]) -> bytes:
    """Serialise tensors, numbers, strings and containers of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    # The last two bytes of a zip archive without a comment say that its comment has length 0.
    assert archive[-2:] == b"\0\0"
    return archive[:-2] + LENGTH.to_bytes(2, "little") + hashlib.sha256(archive).hexdigest().encode()


def whole(data: bytes) -> bool:
    """Whether the bytes are those that `encode` wrote."""
    if len(data) < LENGTH + 2 or data[-LENGTH - 2 : -LENGTH] != LENGTH.to_bytes(2, "little"):
        return False
    return hashlib.sha256(data[: -LENGTH - 2] + b"\0\0").hexdigest().encode() == data[-LENGTH:]


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write aside, sync, rename. With `keep_previous` the file that was there stays beside it as `<name>.prev.pt`."""
    data = encode(content)
    write_bytes(path, data, previous=previous(path) if keep_previous else None)


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Open a checkpoint of ours. Raises DataError if it is absent, damaged or not one."""
    if not path.is_file():
        raise DataError("checkpoint", path, "there is no such file", "check the path")
    data = path.read_bytes()
    if not whole(data):
        fix = "use another checkpoint; of another program: model._target_=... checkpoint=FILE dataset=NAME"
        raise DataError("checkpoint", path, "is damaged: its checksum does not match", fix)
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return content


def latest(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], str | None]:
    """The checkpoint at `path`, or the one before it if that is damaged, with a warning that names the file."""
    try:
        return read(path, device), None
    except DataError as damage:
        if not previous(path).is_file():
            raise
        return read(previous(path), device), f"{damage.value} {damage.why}; going on from {previous(path).name}"
