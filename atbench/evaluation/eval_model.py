"""A network under evaluation: how it is held, fed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atbench.data import Images
from atbench.errors import NumericalError
from atbench.models import Cast, bn_mode, image_type, untouched
from atbench.seeding import derive_seed, seed_global

Sum = Callable[[Tensor], Tensor]


class EvalModel:
    """A network under evaluation: eval mode and frozen inside `ready`, everything restored afterwards.

    Counts the images that went forward (`passes`), and of those how many were asked for a gradient (`gradients`).
    `rank`, `world` and `reduce` (a sum over processes) make it one of several that share the work.

    dtype: of images, logits and all that is judged, whatever the network computes in; `answer` casts at its boundary.
    doing: what it is asked for now, in words; `watch` hears of every pass.
    random: whether it answers one image differently from pass to pass, as `probes.randomness` found.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, rank: int = 0, world: int = 1, reduce: Sum = lambda t: t
    ) -> None:
        self.network, self.batch_size = network, batch_size
        self.rank, self.world, self.reduce = rank, world, reduce
        self.device, self.dtype = next(network.parameters()).device, image_type(network)
        self.answer = Cast(network)
        self.passes = self.gradients = 0
        self.random = False
        self.doing = ""
        self.watch: Callable[[EvalModel], None] = lambda eval_model: None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A block in which the network is in eval mode and frozen."""
        with untouched(self.network), bn_mode(self.network, "eval"):
            yield

    def logits(self, x: Tensor) -> Tensor:
        """Logits, counted and checked: argmax of NaN is class 0, and would pass for a prediction."""
        self.watch(self)
        self.passes += len(x)
        self.gradients += len(x) * int(x.requires_grad)
        logits: Tensor = self.answer(x)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).all(dim=1)).nonzero()[0])
            raise NumericalError(
                "logits", "NaN or infinite", f"first in row {row} of a batch", "check the weights and the images"
            )
        return logits

    def judged(self, x: Tensor, places: Tensor, seed: int, *what: str) -> Tensor:
        """Logits that count, (B, K). A network that answers at random is asked for one image at a time, torch seeded by
        its place (B,): it must draw the same when it is verified, with other images in the batch.
        """
        if not self.random or len(x) == 0:
            return self.logits(x)
        answers = []
        for one, place in zip(x.split(1), places.tolist(), strict=True):
            seed_global(derive_seed(seed, "judged", *what, place), self.device)
            # Beside a copy of itself, because BatchNorm in train mode refuses a batch of one.
            answers.append(self.logits(one.expand(2, *one.shape[1:]).contiguous())[:1])
        return torch.cat(answers)

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
                logits = self.judged(x, images.indices(rows), 0, "clean")
                right[rows.to(self.device)] = (logits.argmax(dim=1) == y).long()
        return self.reduce(right).bool().cpu()
