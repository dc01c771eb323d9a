"""Heads: cosines with a scale, and their place in a network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atbench.errors import ConfigError
from atbench.models import Hypersphere
from atbench.models.heads import make_head
from tests.support.nets import SMALL, images, small

F64 = torch.float64


def test_hypersphere_is_scaled_cosines() -> None:
    head = Hypersphere(6, 4, 7.0).double()
    h = torch.randn(3, 6, dtype=F64)
    cosines = torch.stack([F.cosine_similarity(h, row[None], dim=1) for row in head.weight], dim=1)
    torch.testing.assert_close(head(h), 7.0 * cosines, rtol=0, atol=1e-12)
    assert head.bias is None


def test_hypersphere_sees_directions_alone() -> None:
    head = Hypersphere(6, 4, 15.0).double()
    h = torch.randn(3, 6, dtype=F64)
    expected = head(h)
    torch.testing.assert_close(head(8 * h), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        head.weight *= torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)[:, None]
    torch.testing.assert_close(head(h), expected, rtol=0, atol=1e-12)
    assert expected.abs().max() <= 15


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_network_takes_either_head(name: str) -> None:
    side = max(SMALL[name][2], 8)
    network = small(name, head="hypersphere", head_scale=4.0).eval()
    assert isinstance(network.head, Hypersphere) and network.head.scale == 4.0
    logits = network(images(side))
    assert logits.shape == (4, 5) and logits.abs().max() <= 4 and logits.abs().max() > 0
    assert type(small(name).head) is torch.nn.Linear


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.head: cosine .* linear, hypersphere"):
        make_head("cosine", 4, 2, 1.0)
