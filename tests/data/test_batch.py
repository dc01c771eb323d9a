"""A batch in parts, and put together again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.data import Batch, View, join


def loaded(rows: int, extra: Batch | None = None) -> Batch:
    x, flip = torch.rand(rows, 3, 4, 4), torch.rand(rows) < 0.5
    view = View(2, torch.randint(5, (rows,)), torch.randint(5, (rows,)), flip, "reflect")
    y = torch.rand(rows, 5).softmax(dim=1)
    return Batch(x, y, torch.randperm(rows), view, extra, (torch.rand_like(x), torch.rand_like(x)))


def tensors(batch: Batch) -> list[Tensor]:
    assert batch.view
    own = [batch.x, batch.y, batch.index, batch.view.top, batch.view.left, batch.view.flip, *batch.views]
    return own + (tensors(batch.extra) if batch.extra else [])


def test_parts_hold_the_rows_of_a_batch_in_order() -> None:
    batch = loaded(12, extra=loaded(6))
    parts = batch.split(3)
    assert [(len(part), len(part.extra or ())) for part in parts] == [(4, 2)] * 3
    assert torch.equal(parts[1].x, batch.x[4:8]) and parts[1].view and parts[1].view.padding_mode == "reflect"
    again = join(parts)
    assert all(torch.equal(*pair) for pair in zip(tensors(batch), tensors(again), strict=True))
    assert again.x_adv is None and again.aux == {}
    bare = Batch(batch.x, batch.y, batch.index)
    assert torch.equal(join(bare.split(6)).x, bare.x)
    assert join([batch]) is batch


@pytest.mark.parametrize("rows", [1, 3])
def test_what_methods_hand_on_is_joined_by_what_it_is(rows: int) -> None:
    values, copies = torch.rand(4 * rows, 2), torch.rand(3, 4 * rows)
    points = [part.clone().requires_grad_() for part in values.split(rows)]
    for point in points:
        (point**2).sum(dim=1).mean().backward()
    errors, shared = torch.rand(4), (torch.rand(2 * rows),)
    batch = Batch(torch.rand(4 * rows, 1, 2, 2), torch.zeros(4 * rows), torch.arange(4 * rows))
    parts = [
        part.with_adv(part.x, point=point, copies=copies[:, part.index].flatten(), error=error, shared=shared, loop=2)
        for part, point, error in zip(batch.split(4), points, errors, strict=True)
    ]
    whole = join(parts)
    assert torch.equal(whole.x_adv, batch.x) and torch.equal(whole.aux["point"], values)
    assert torch.equal(whole.aux["copies"], copies.flatten()), "copies of a batch, one behind the other"
    assert float(whole.aux["error"]) == pytest.approx(float(errors.mean()))
    assert whole.aux["shared"] is shared and whole.aux["loop"] == 2
    alone = values.clone().requires_grad_()
    (alone**2).sum(dim=1).mean().backward()
    torch.testing.assert_close(whole.aux["point"].grad, alone.grad)
