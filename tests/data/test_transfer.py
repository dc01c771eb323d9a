"""Copies to the device that the host does not wait for, on tensors that stand for CUDA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atbench.data import Images, Source, TrainData
from atbench.data.lazy_images import DecoderPool, LazyImages
from atbench.data.transfer import to_device
from tests.support.class_folders import SIDE, draw

CUDA = torch.device("cuda")


class Fake:
    """A tensor of the CPU that writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def pin_memory(self) -> Fake:
        self.asked.append("pin")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> Fake:
        self.asked.append((device.type, non_blocking))
        return self


def test_copies_to_cuda_are_pinned_and_not_waited_for() -> None:
    tensor: Any = Fake()
    assert to_device(tensor, CUDA).asked == ["pin", ("cuda", True)]
    tensor = Fake()
    assert to_device(tensor, torch.device("cpu")).asked == [("cpu", False)]


@pytest.fixture
def pictures(tmp_path: Path) -> Source:
    """Eight pictures, which are decoded as they are asked for; two are held out."""
    files = [str(tmp_path / f"{number}.png") for number in range(8)]
    for number, file in enumerate(files):
        draw(Path(file), number % 2, number)
    images = Images(LazyImages(files, SIDE, SIDE, 0, DecoderPool(1)), torch.arange(8) % 2)
    return Source("pictures", images, lambda: images, ("a", "b"), (0.5,) * 3, (0.5,) * 3, validation=2)


def test_the_host_decodes_pictures_by_its_own_rows(pictures: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows on the device would have to be waited for. Everything that goes there goes by `to_device`."""
    sent: list[Tensor] = []

    def send(tensor: Tensor, device: torch.device) -> Tensor:
        sent.append(tensor)
        return tensor.clone()  # on a device: no longer the host's tensor

    asked: list[Tensor] = []
    rows = LazyImages._rows
    monkeypatch.setattr("atbench.data.loader.to_device", send)
    monkeypatch.setattr("atbench.data.lazy_images.to_device", send)
    monkeypatch.setattr(LazyImages, "_rows", lambda self, index: (asked.append(index), rows(self, index))[1])
    data = TrainData(pictures, 2, seed=0)
    batch = data.batch(0, 0)
    index, pixels = sent
    assert asked[0] is index, "the rows from which those of the device were made"
    assert torch.equal(batch.index, index) and torch.equal(batch.x, pixels.float().div(255))
    plain = pictures.train.take(pictures.split_indices()[1]).floats(batch.index)
    assert torch.equal(batch.x, plain)
