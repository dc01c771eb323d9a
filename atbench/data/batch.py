"""What a method is given: one batch, and what the attack adds to it."""

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
    and flipped, None where nothing was done; extra: the unlabelled part, if the configuration asks for one (its `y` is
    −1);
    adv: what the inner maximisation found; aux: tensors that `perturb`, `inner_updates`, `loss` and `after_update` hand
    on to each other.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    view: View | None = None
    extra: Batch | None = None
    adv: Tensor | None = None
    aux: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def with_adv(self, adv: Tensor | None = None, **aux: Any) -> Batch:
        """This batch with an adversarial image per example and further `aux` entries; the original stays as it is."""
        return replace(self, adv=self.adv if adv is None else adv, aux={**self.aux, **aux})

    @property
    def x_adv(self) -> Tensor:
        """The adversarial images; a method that reads them before anything made them is wrong."""
        assert self.adv is not None, "this batch was not perturbed"
        return self.adv
