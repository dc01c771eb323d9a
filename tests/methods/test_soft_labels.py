"""Labels as shares of classes."""

from __future__ import annotations

import pytest
import torch

from atbench.methods.soft_labels import smooth_label


@pytest.mark.parametrize("true", [0.0, 0.1, 0.5, 1.0])
def test_the_rest_goes_evenly_to_the_others(true: float) -> None:
    logits, y = torch.zeros(3, 5, dtype=torch.float64), torch.tensor([4, 0, 2])
    label = smooth_label(y, true, logits)
    expected = [[true if k == int(c) else (1 - true) / 4 for k in range(5)] for c in y]
    torch.testing.assert_close(label, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert label.dtype == torch.float64
    share = torch.tensor([[0.25, 0.75, 0, 0, 0]], dtype=torch.float64)
    mixed = 0.25 * smooth_label(torch.tensor([0]), true, logits) + 0.75 * smooth_label(torch.tensor([1]), true, logits)
    torch.testing.assert_close(smooth_label(share, true, logits), mixed, rtol=0, atol=1e-15)


def test_all_on_the_label_is_the_label() -> None:
    y = torch.tensor([1, 0])
    assert torch.equal(smooth_label(y, 1.0, torch.zeros(2, 3)), torch.eye(3)[y])
