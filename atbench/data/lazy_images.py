"""Picture files as a tensor whose rows are decoded by worker threads on demand, the next batch ahead.

Threads rather than processes: Pillow decodes without holding the interpreter's lock, and nothing is copied or pickled.
No position is stored: which rows come next is a function of (seed, epoch, step), which the loader knows, so a run that
is resumed in the middle of an epoch asks for the rows of its step.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atbench.data.transfer import to_device
from atbench.errors import DataError

Pixels = NDArray[np.uint8]
Rows = Tensor | slice
GIB = 2**30


class DecoderPool(ThreadPoolExecutor):
    """The worker threads of one data set, started when there is something to decode: `workers` of them, None for one a
    core that this process may use, 16 at most.
    """

    def __init__(self, workers: int | None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        super().__init__(workers or min(cores, 16), "pictures")


class LazyImages:
    """Stands where a uint8 tensor (N, 3, size, size) could: `shape`, `dtype`, `device`, rows by index, `to`.

    Args:
        files: one path a row.
        size: side of a row; `resize` is what the shorter side is scaled to before the middle is cut out.
        memory: bytes up to which `to` decodes everything into a tensor, once and for all.
        pool: the threads that decode; shared with selections of rows.
    """

    dtype, ndim = torch.uint8, 4
    AHEAD = 4  # batches that may be waited for at a time: a main stream and a few beside it
    BLOCK = 256  # rows in flight where all are decoded

    def __init__(
        self,
        files: Sequence[str],
        size: int,
        resize: int,
        memory: float,
        pool: DecoderPool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.files, self.size, self.resize, self.memory = files, size, resize, memory
        self.pool, self.device = pool, torch.device(device)
        self._pending: OrderedDict[bytes, list[Future[Pixels]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.files), 3, self.size, self.size))

    def __getitem__(self, index: Rows) -> Tensor:
        """The rows `index` as uint8, on the device. Raises DataError, which names the file, where one is damaged."""
        rows = self._rows(index)
        pending = self._pending.pop(rows.tobytes(), None) or self._submit(rows)
        return to_device(torch.from_numpy(np.stack([future.result() for future in pending])), self.device)

    def prefetch(self, index: Rows) -> None:
        """Begin to decode rows that will be asked for soon, in this order and together."""
        rows = self._rows(index)
        self._pending[rows.tobytes()] = self._submit(rows)
        if len(self._pending) > self.AHEAD:  # never fetched: training ended, or another network was evaluated
            for future in self._pending.popitem(last=False)[1]:
                future.cancel()

    def select(self, index: Tensor) -> LazyImages:
        """The rows `index`, still undecoded."""
        return self._like([self.files[row] for row in index.tolist()], self.device)

    def to(self, device: torch.device | str) -> Tensor | LazyImages:
        """A tensor on `device` where it fits into `memory`; else pictures that decode to it, their headers looked at.

        Raises DataError for a file that is no picture: now, and not in the middle of an epoch.
        """
        if self.shape.numel() > self.memory:
            self.check_headers()
            return self._like(self.files, device)
        whole = torch.empty(self.shape, dtype=torch.uint8)
        for first in range(0, len(self), self.BLOCK):
            rows = np.arange(first, min(first + self.BLOCK, len(self)))
            for row, future in zip(rows, self._submit(rows), strict=True):
                whole[row] = torch.from_numpy(future.result())
        return whole.to(device)

    def check_headers(self) -> None:
        """Read the headers of all files. Raises DataError for one that is no picture."""
        for _ in self.pool.map(check_header, self.files):
            pass

    def names(self) -> Iterable[tuple[str, int]]:
        """Folder and name, and size in bytes, of every file: what a checksum is made of without reading everything."""
        for file in self.files:
            yield "/".join(file.split(os.sep)[-2:]), os.path.getsize(file)

    def _like(self, files: Sequence[str], device: torch.device | str) -> LazyImages:
        return LazyImages(files, self.size, self.resize, self.memory, self.pool, device)

    def _rows(self, index: Rows) -> NDArray[np.int64]:
        return np.arange(len(self))[index] if isinstance(index, slice) else index.cpu().numpy()

    def _submit(self, rows: NDArray[np.int64]) -> list[Future[Pixels]]:
        work = functools.partial(decode, size=self.size, resize=self.resize)
        return [self.pool.submit(work, self.files[row]) for row in rows]


# What Pillow raises for damaged files, by format.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def decode(file: str, size: int, resize: int) -> Pixels:
    """(3, size, size): the shorter side scaled to `resize`, the middle cut out; a file of that size as it is.

    The orientation in a photograph's EXIF data is not followed, as torchvision and the published networks have it.
    Raises DataError for a damaged file and one that is no single opaque picture.
    """
    with _opened(file) as opened:
        opened.draft("RGB", (resize, resize))  # a JPEG is decoded at the next larger eighth: several times faster
        picture = to_rgb(opened, file)
    width, height = picture.size
    if min(width, height) != resize:
        scale = resize / min(width, height)
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    return np.array(picture).transpose(2, 0, 1)


def check_header(file: str) -> None:
    """Read the header of a picture. Raises DataError where there is none, or not that of a single picture."""
    with _opened(file):
        pass


@contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """A picture file, open in the block. Raises DataError for what is damaged, there or in the block."""
    try:
        with Image.open(file) as opened:
            refuse_animation(opened, file)
            yield opened
    except _DAMAGE as fault:
        fix = "replace it, or delete it and start a new run"
        raise DataError("picture", file, f"cannot be decoded ({fault})", fix) from fault


def refuse_animation(opened: Image.Image, file: str) -> None:
    """Raise DataError for an animation, and for pixels that are no grey levels or colours."""
    # A telephone's JPEG may hold further frames (MPO): a preview, a map of depths. The first is the picture.
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != "MPO":
        raise DataError("picture", file, f"is an animation of {frames} frames", "save the frame that is meant")
    if opened.mode == "F":
        raise DataError("picture", file, "has floating-point pixels, of no known range", "save it with 8 bits a pixel")


def to_rgb(opened: Image.Image, file: str) -> Image.Image:
    """The picture as RGB of 8 bits. Grey levels of 16 bits are scaled to 8, where Pillow's conversion makes them white.

    Raises DataError where that would guess: transparent pixels have no colour, and 16-bit pixels that use 12 bits at
    most may as well be dark as of another scale.
    """
    tile = getattr(opened, "tile", None)
    raw = str(tile[0][3]) if tile else ""  # how the pixels lie in the file, before they are decoded
    if opened.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        levels = np.asarray(opened).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError("picture", file, "has grey levels beyond 16 bits", "save it with 8 bits a pixel")
        _refuse_dark(int(levels.max()), file)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info:
        alpha = opened.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            fix = "put it on the background that is meant, and save it without transparency"
            raise DataError("picture", file, "has transparent pixels, which have no colour", fix)
    picture = opened.convert("RGB")
    if ";16" in raw:  # colours, of which Pillow keeps the upper 8 bits
        _refuse_dark(256 * int(np.asarray(picture).max()) + 255, file)
    return picture


def _refuse_dark(highest: int, file: str) -> None:
    if 0 < highest < 4096:
        why = f"has 16 bits a pixel and no level above {highest}: levels of fewer bits, or nearly black"
        raise DataError("picture", file, why, "save it with 8 bits a pixel, scaled as is meant")
