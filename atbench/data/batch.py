"""A training batch, with the adversarial images once an attack has made them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

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
    aux: tensors that `perturb`, `inner_updates`, `loss` and `after_update` hand on to each other.
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
