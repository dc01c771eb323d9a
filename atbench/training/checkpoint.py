"""Checkpoints with a checksum.

A checkpoint is what `torch.save` writes, a zip archive, with its own SHA-256 as the archive's comment:
`torch.load(path, weights_only=True)` opens it anywhere; `read` refuses a truncated or corrupted one. The CRC-32 that
zip archives have of each file is left out: it would be a second checksum of the same bytes, for a third of the time.
torch does not look at it; `unzip` says that it is wrong.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.serialization import config

from atbench.errors import DataError
from atbench.runs.run_dir import atomic_file

LENGTH = 64  # of a SHA-256 in hexadecimal
ENDING = b"\0\0"  # of a zip archive without a comment: the comment's length
COMMENT = LENGTH.to_bytes(2, "little")  # in its place
CHUNK = 2**18  # bytes hashed and written at a time: in between they stay in the cache of a core
SCHEMA = 1  # version of a checkpoint's content


def encode(content: dict[str, Any], file: BinaryIO) -> None:
    """Serialise tensors, numbers, strings and containers of them into `file`, without a copy: they may be gigabytes."""
    archive = _Hashed(file)
    try:
        with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]  # made while it is imported
            torch.save(content, archive)  # type: ignore[arg-type]  # of a file it wants `write` and `flush`
    except RuntimeError as error:
        # torch finishes its archive after a write that failed, and finds it too short. What ended the write says more:
        # a full disk, a signal.
        raise error.__context__ or error from None
    archive.finish()


class _Hashed:
    """The file that torch writes a zip archive into: hashes and passes on what it is given, all but the end of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.held = b""  # the last two bytes so far

    def write(self, data: bytes | memoryview) -> int:
        """Pass on what was held and all but the last two bytes of `data`."""
        size = len(data)
        if size < len(ENDING):
            data = self.held + bytes(data)
        else:
            self._pass_on(self.held)
        self._pass_on(data[: -len(ENDING)])
        self.held = bytes(data[-len(ENDING) :])
        return size

    def flush(self) -> None:
        """torch asks for it at the end. It is the file's owner who flushes."""

    def finish(self) -> None:
        """Write the checksum as the archive's comment, in place of the end that says that there is none."""
        assert self.held == ENDING
        self.sha256.update(ENDING)
        self.file.write(COMMENT + self.sha256.hexdigest().encode())

    def _pass_on(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            self.sha256.update(chunk)
            self.file.write(chunk)


def whole(file: BinaryIO) -> bool:
    """Whether the file is one that `encode` wrote."""
    archive = file.seek(0, io.SEEK_END) - len(COMMENT) - LENGTH
    if archive < 0:
        return False
    file.seek(archive)
    comment, digest, buffer = file.read(), hashlib.sha256(), memoryview(bytearray(CHUNK))
    file.seek(0)
    while archive and (count := file.readinto(buffer[:archive])):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        archive -= count
    digest.update(ENDING)
    return comment == COMMENT + digest.hexdigest().encode()


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a checkpoint, and not damaged."""
    with path.open("rb") as file:
        return whole(file)


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write aside, sync, rename. With `keep_previous` the file that was there stays beside it as `<name>.prev.pt`."""
    with atomic_file(path, previous(path) if keep_previous else None) as file:
        encode({"schema": SCHEMA, **content}, file)


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def read(path: Path, device: torch.device | str = "cpu", needs: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint of atbench. Raises DataError if it is absent, damaged, of another program or version, or lacks
    one of the keys `needs`.
    """
    with _undamaged(path) as file:
        return _content(path, file, device, needs)


def latest(
    path: Path, device: torch.device | str = "cpu", needs: Collection[str] = ()
) -> tuple[dict[str, Any], str | None]:
    """Read `path`, or, if it is damaged, the checkpoint before it. Returns the content and a warning, if any."""
    try:
        file, used, warning = _undamaged(path), path, None
    except DataError as damage:
        used = previous(path)
        if not used.is_file():
            raise
        file, warning = _undamaged(used), f"{damage.value} {damage.why}; going on from {used.name}"
    with file:
        return _content(used, file, device, needs), warning


def _undamaged(path: Path) -> BinaryIO:
    """The open file, whose checksum is right: what is read from it is what was checked, also if another one takes its
    name meanwhile.
    """
    if not path.is_file():
        raise DataError("checkpoint", path, "there is no such file", "check the path")
    file = path.open("rb")
    if not whole(file):
        file.close()
        fix = "use another checkpoint; of another program: model._target_=... checkpoint=FILE dataset=NAME"
        raise DataError("checkpoint", path, "is damaged: its checksum does not match", fix)
    file.seek(0)
    return file


def _content(path: Path, file: BinaryIO, device: torch.device | str, needs: Collection[str]) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as fault:
        raise DataError("checkpoint", path, "holds more than tensors and numbers", "use another checkpoint") from fault
    known = content.get("schema") if isinstance(content, dict) else None
    if known != SCHEMA:
        why = f"is of schema {known}, and this version of atbench reads {SCHEMA}"
        raise DataError("checkpoint", path, why, "use the version that wrote it")
    if lacking := sorted(set(needs) - content.keys()):
        raise DataError("checkpoint", path, f"lacks its part '{lacking[0]}'", "use another checkpoint")
    return dict(content)
