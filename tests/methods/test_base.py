"""What the base class gives to methods: portions of a joint batch."""

from __future__ import annotations

import pytest
import torch

from atbench.data import Batch
from atbench.methods.standard import Standard
from tests.support import worlds


def batch_of(rows: int) -> Batch:
    return Batch(torch.zeros(rows, 1, 2, 2), torch.zeros(rows, dtype=torch.long), torch.arange(rows))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_portion_is_spread_over_the_joint_batch(share: float) -> None:
    method = Standard(worlds.linear(), worlds.attack())
    joint = method.subset_mask(batch_of(20), share)
    assert int(joint.sum()) == round(20 * share)
    counts = joint.view(2, 10).sum(dim=1)
    assert int(counts.max() - counts.min()) <= 1
    parts = []
    for rank in range(4):
        method.clock.rank, method.clock.world = rank, 4
        parts.append(method.subset_mask(batch_of(5), share))
    assert torch.equal(torch.cat(parts), joint)
