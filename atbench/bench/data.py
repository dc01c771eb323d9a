"""`atbench bench data`: images a CPU second of our loading, beside torchvision's transforms and torch's DataLoader.

Pictures are random and made in a temporary folder. CPU seconds are those of the process and of its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from atbench.bench.clock import Work, cpu_seconds, take_turns
from atbench.bench.pictures import pictures
from atbench.bench.results import Row
from atbench.bench.session import Session
from atbench.data import TrainData
from atbench.data.augment import PadCropFlip
from atbench.data.image_folder import folder

BATCH = 128


class Pictures(Dataset[tuple[Any, int]]):
    """CIFAR-10 as torchvision has it: an array, each image made a picture and transformed when it is asked for."""

    def __init__(self, pixels: Any, labels: list[int], transform: Any) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def to_tensor() -> Any:
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


def walk(loader: Any) -> None:
    for _ in loader:
        pass


def epoch(data: TrainData) -> None:
    for step in range(data.steps):
        data.batch(0, step)


def measure(session: Session, parts: tuple[str, ...]) -> Iterator[Row]:
    for part in parts:
        yield from PARTS[part](session)


def resident(session: Session) -> Iterator[Row]:
    """32x32 pictures in memory, cropped and flipped: whole batches of bytes, beside one picture after another."""
    count = 256 if session.tiny else 5120
    source = pictures((3, 32, 32), count + 10)
    ours = TrainData(source, BATCH, 0, PadCropFlip(4, True), device="cpu")
    pixels = source.train.x[:count]
    assert isinstance(pixels, torch.Tensor)
    transform = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), to_tensor()])
    theirs = Pictures(pixels.permute(0, 2, 3, 1).numpy(), source.train.y[:count].tolist(), transform)
    loader = DataLoader(theirs, BATCH, shuffle=True, drop_last=True)
    tools: dict[str, Work] = {
        "atbench": partial(epoch, ours),
        "torchvision": partial(walk, loader),
    }
    yield from images(session, "resident", "32x32 in memory, crop and flip", tools, ours.steps * BATCH)


def streamed(session: Session) -> Iterator[Row]:
    """Files decoded when they are asked for, by two workers: photographs in JPEG, and PNG of the size that is used."""
    count = 64 if session.tiny else 512
    with TemporaryDirectory() as place:
        for kind, shape in (("jpeg", (375, 500)), ("png", (64, 64))):
            root = Path(place, kind)
            save_pictures(root, kind, shape, count)
            source = folder(Path(), str(root), 64, memory=0, workers=2, validation=0, test=0.01)
            ours = TrainData(source, 32, 0)
            transform = v2.Compose([v2.Resize(64), v2.CenterCrop(64), to_tensor()])
            loader = DataLoader(ImageFolder(str(root), transform), 32, shuffle=True, drop_last=True, num_workers=2)
            tools: dict[str, Work] = {"atbench": partial(epoch, ours), "DataLoader": partial(walk, loader)}
            what = f"{shape[1]}x{shape[0]} {kind.upper()} files as 64x64, 2 workers"
            yield from images(session, f"folder/{kind}", what, tools, ours.steps * 32, len(loader) * 32)


def images(
    session: Session, name: str, what: str, tools: dict[str, Work], ours: int, theirs: int | None = None
) -> Iterator[Row]:
    """Our images a CPU second, and that over theirs."""
    seconds = take_turns(tools, session.rounds, cpu_seconds)
    rate = [ours / each for each in seconds["atbench"]]
    yield session.row(f"{name}/images", f"{what}: images a CPU second", rate, "/s")
    (other,) = set(tools) - {"atbench"}
    ratio = [mine * each / (theirs or ours) for mine, each in zip(rate, seconds[other], strict=True)]
    yield session.row(f"{name}/{other}", f"{what}: {other}", ratio)


def save_pictures(root: Path, kind: str, shape: tuple[int, int], count: int) -> None:
    """Random pictures of two classes, smooth as photographs are, with a little noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        file = root / f"class{number % 2}" / f"{number}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file)


PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {"resident": resident, "folder": streamed}
