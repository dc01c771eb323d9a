"""Accuracy on corrupted images: each figure is the mean of a mask, and the masks are those of the corrupted images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atbench.data import Images
from atbench.data.corruptions import corrupt
from atbench.errors import ConfigError
from atbench.evaluation import EvalModel
from atbench.evaluation.corruption_accuracy import corruption_accuracy
from atbench.interval import accuracy_figures, wilson
from atbench.runs.seeding import ExampleDraws

SIDE, NAMES = 8, ("gaussian_noise", "contrast", "fog")


class Flat(nn.Module):
    """A linear network on pixels, in double precision, with a dropout that evaluation must find in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(SIDE * SIDE, 4).double(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x.flatten(1)))


def images(network: nn.Module, n: int = 150) -> Images:
    x = torch.randint(256, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        return Images(x, network.eval()(x.double() / 255).argmax(dim=1))


def test_every_row_is_the_mean_of_its_mask() -> None:
    network = Flat()
    given = images(network)
    network.train()
    out, masks = corruption_accuracy(EvalModel(network, 32), given, NAMES, (1, 5), seed=3)
    assert network.training and masks.shape == (6, 150) and masks.dtype == bool
    assert [(row["name"], row["severity"]) for row in out["rows"]] == [(name, s) for name in NAMES for s in (1, 5)]
    for row, mask in zip(out["rows"], masks, strict=True):
        rng = ExampleDraws(3, "corruption", row["name"], index=torch.arange(150))
        x = corrupt(given.x, row["name"], row["severity"], rng).double() / 255
        with torch.no_grad():
            expected = network.eval()(x).argmax(dim=1) == given.y
        assert np.array_equal(mask, expected.numpy())
        assert {key: row[key] for key in ("accuracy", "low", "high")} == accuracy_figures(int(mask.sum()), 150) and row[
            "n"
        ] == 150
    harder = [out["rows"][i + 1]["accuracy"] < out["rows"][i]["accuracy"] for i in (0, 2, 4)]
    assert all(harder) and out["rows"][0]["accuracy"] < 1


def test_the_mean_has_the_interval_of_n_images() -> None:
    network = Flat()
    out, masks = corruption_accuracy(EvalModel(network, 32), images(network), NAMES, (2, 3), seed=0)
    mean, (low, high) = out["mean"], wilson(float(masks.mean()) * 150, 150)
    assert mean == {"accuracy": masks.mean(), "low": low, "high": high, "n": 150}
    assert mean["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in out["rows"]]))
    spread = masks.mean(axis=0).std(ddof=1) / np.sqrt(150)
    assert high - low > 2 * 1.9 * spread, "no narrower than what the images' own scores vary by"
    one, _ = corruption_accuracy(EvalModel(network, 32), images(network), ["fog"], [4], seed=0)
    assert one["mean"] == {key: one["rows"][0][key] for key in ("accuracy", "low", "high", "n")}


def test_neither_batches_nor_processes_change_an_answer() -> None:
    network = Flat()
    given = images(network)
    _, whole = corruption_accuracy(EvalModel(network, 150), given, NAMES, (4,), seed=0)
    _, small = corruption_accuracy(EvalModel(network, 7), given, NAMES, (4,), seed=0)
    parts = [corruption_accuracy(EvalModel(network, 16, rank, 2), given, NAMES, (4,), seed=0)[1] for rank in range(2)]
    assert np.array_equal(small, whole) and np.array_equal(parts[0] | parts[1], whole)
    assert not (parts[0] & parts[1]).any()
    _, other = corruption_accuracy(EvalModel(network, 150), given, NAMES, (4,), seed=1)
    assert not np.array_equal(other[0], whole[0]) and np.array_equal(other[1], whole[1]), "contrast draws nothing"


@pytest.mark.parametrize(
    ("names", "severities"), [([], [1]), (["fog"], []), (["fog"], [0, 1]), (["fog", "frog"], [1]), (["fog"], [6])]
)
def test_what_cannot_be_run_is_refused_before_any_pass(names: list[str], severities: list[int]) -> None:
    network = Flat()
    eval_model = EvalModel(network, 16)
    with pytest.raises(ConfigError):
        corruption_accuracy(eval_model, images(network), names, severities, seed=0)
    assert eval_model.passes == 0
