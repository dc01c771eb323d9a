"""Black pixels around the images of a published set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atbench.errors import ConfigError
from tests.support.published_files import opened, write_mnist


@pytest.mark.parametrize("pad", [1, 2])
def test_padding_is_black_and_part_of_both_splits(tmp_path: Path, pad: int) -> None:
    splits = write_mnist(tmp_path / "MNIST" / "raw")
    source = opened("mnist", tmp_path, pad=pad)
    for images, part in ((source.train, "train"), (source.test(), "t10k")):
        pixels = torch.from_numpy(splits[part][0]).permute(0, 3, 1, 2)
        assert images.x.shape[2:] == (28 + 2 * pad, 28 + 2 * pad) and images.x.dtype == torch.uint8
        assert torch.equal(images.x[:, :, pad:-pad, pad:-pad], pixels)
        assert int(images.x.sum()) == int(pixels.sum())
    with pytest.raises(ConfigError, match=r"dataset\.source\.pad"):
        opened("mnist", tmp_path, pad=-1)
