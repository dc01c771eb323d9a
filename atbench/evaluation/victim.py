"""A network under evaluation: how it is held, fed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atbench.data import Images
from atbench.errors import NumericalError
from atbench.models import Cast, bn_mode, image_type, untouched

Sum = Callable[[Tensor], Tensor]


class Victim:
    """A network under evaluation: eval mode and frozen inside `ready`, everything restored afterwards.

    Counts the images that went forward (`passes`), and of those how many were asked for a gradient (`gradients`).
    `rank`, `world` and `reduce` (a sum over processes) make it one of several that share the work.

    dtype: of images, logits and all that is judged, whatever the network computes in; `answer` casts at its boundary.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, rank: int = 0, world: int = 1, reduce: Sum = lambda t: t
    ) -> None:
        self.network, self.batch_size = network, batch_size
        self.rank, self.world, self.reduce = rank, world, reduce
        self.device, self.dtype = next(network.parameters()).device, image_type(network)
        self.answer = Cast(network)
        self.passes = self.gradients = 0

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A block in which the network is in eval mode and frozen."""
        with untouched(self.network), bn_mode(self.network, "eval"):
            yield

    def logits(self, x: Tensor) -> Tensor:
        """Logits, counted and checked: argmax of NaN is class 0, and would pass for a prediction."""
        self.passes += len(x)
        self.gradients += len(x) * int(x.requires_grad)
        logits: Tensor = self.answer(x)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).all(dim=1)).nonzero()[0])
            raise NumericalError(
                "logits", "NaN or infinite", f"first in row {row} of a batch", "check the weights and the images"
            )
        return logits

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """This process's part of the examples `rows`, in batches."""
        own = rows[self.rank :: self.world]
        return iter(own.split(self.batch_size) if len(own) else ())

    def load(self, images: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `rows` as floats in [0, 1], with their labels, where the network is."""
        rows = rows.to(images.x.device)
        return images.floats(rows, self.dtype).to(self.device), images.y[rows].to(self.device)

    def correct(self, images: Images) -> Tensor:
        """(n,) booleans, on the CPU: which clean images are classified right."""
        right = torch.zeros(len(images), dtype=torch.long, device=self.device)
        with self.ready(), torch.no_grad():
            for rows in self.batches(torch.arange(len(images))):
                x, y = self.load(images, rows)
                right[rows.to(self.device)] = (self.logits(x).argmax(dim=1) == y).long()
        return self.reduce(right).bool().cpu()
