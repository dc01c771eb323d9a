"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8×8 (UCI Optical Recognition, Alpaydin & Kaynak)."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import torch

from atbench.data.dataset import Images, Source, stratified

TEST, VALIDATION, SPLIT_SEED = 450, 200, 0


def digits() -> Source:
    """Digits with a fixed stratified split: 450 test images, the other 1,347 to train on, of which a run holds out 200.

    There is no official split of this file; ours is fixed by SPLIT_SEED and never changes with a run's seed. Grey
    levels 0..16 become 0..255, so that ε is in the usual [0, 1] scale.
    """
    images, labels = _load()
    test, train = stratified(labels, (TEST,), SPLIT_SEED)
    return Source(
        name="digits",
        train=Images(images[train], labels[train]),
        test=lambda: Images(images[test], labels[test]),
        classes=tuple(str(k) for k in range(10)),
        mean=(0.305,),
        std=(0.376,),
        validation=VALIDATION,
    )


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    """The file that scikit-learn's `load_digits` reads, without scikit-learn: its import takes longer than the rest."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None, "scikit-learn is a dependency"
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt", encoding="ascii") as lines:
        table = torch.tensor([[int(value) for value in line.split(",")] for line in lines])
    images = (table[:, :-1].view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    return images, table[:, -1]
