"""A training batch, with the adversarial images once an attack has made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atbench.data.augment import View


@dataclass(frozen=True)
class Batch:
    """Examples of one step, on this process.

    x: (B, C, H, W) in [0, 1]; y: (B,) class indices or (B, K) soft labels; index: (B,) positions in the train split,
    generated images behind the data set's own (in the unlabelled pool for an `extra`); view: how each image was cropped
    and flipped, None without augmentation; extra: the unlabelled part, if configured (its `y` is −1);
    views: (B, C, H, W) each: the same examples, augmented otherwise, as many as the method set (`TrainData.set_views`);
    x_adv: the result of the inner maximisation, None before it;
    aux: what `perturb`, `inner_updates`, `loss` and `after_update` hand on to each other: tensors with a row for each
    example, or none at all for a mean over them; in a tuple what is the same whatever the examples.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    view: View | None = None
    extra: Batch | None = None
    views: tuple[Tensor, ...] = ()
    x_adv: Tensor = None  # type: ignore[assignment]  # methods read it after `perturb` alone
    aux: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def with_adv(self, x_adv: Tensor | None = None, **aux: Any) -> Batch:
        """A copy with adversarial images (B, C, H, W), if given, and further `aux` entries."""
        return replace(self, x_adv=self.x_adv if x_adv is None else x_adv, aux={**self.aux, **aux})

    def split(self, count: int) -> list[Batch]:
        """A batch as it was loaded in `count` parts of equal size, its unlabelled part and its views likewise."""
        views = zip(*(each.chunk(count) for each in self.views), strict=True) if self.views else [()] * count
        rows = (each.chunk(count) for each in (self.x, self.y, self.index))
        view = self.view.split(count) if self.view else [None] * count
        extra = self.extra.split(count) if self.extra else [None] * count
        return [Batch(*each) for each in zip(*rows, view, extra, views, strict=True)]


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of parts that were split and used, for `after_update`; a single part as it is."""
    first = parts[0]
    if len(parts) == 1:
        return first
    views = [part.view for part in parts if part.view]
    extra = [part.extra for part in parts if part.extra]

    def joined(values: Sequence[Any]) -> Any:
        return _join_rows(values, len(first)) if isinstance(values[0], Tensor) else values[0]

    return replace(
        first,
        x=joined([part.x for part in parts]),
        y=joined([part.y for part in parts]),
        index=joined([part.index for part in parts]),
        view=View.join(views) if views else None,
        extra=join(extra) if extra else None,
        views=tuple(torch.cat(each) for each in zip(*(part.views for part in parts), strict=True)),
        x_adv=joined([part.x_adv for part in parts]),
        aux={name: joined([part.aux[name] for part in parts]) for name in first.aux},
    )


def _join_rows(parts: Sequence[Tensor], rows: int) -> Tensor:
    """Values of parts of `rows` examples, which may stand there several times (n·B, ...), with their gradients; the
    mean of values without rows.

    A part's gradient is that of its own mean, and becomes that of the mean of all.
    """
    if parts[0].ndim == 0:
        return torch.stack([part.detach() for part in parts]).double().mean().to(parts[0].dtype)
    copies = len(parts[0]) // rows
    if any(len(part) != copies * rows for part in parts):
        return parts[0]
    whole = torch.cat([part.detach().unflatten(0, (copies, rows)) for part in parts], dim=1).flatten(0, 1)
    if gradients := [part.grad for part in parts if part.is_leaf and part.grad is not None]:
        whole.grad = _join_rows(gradients, rows) / len(parts)
    return whole
