"""Network under evaluation: frozen, in eval mode, its passes counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from atbench.data import Images
from atbench.errors import NumericalError, out_of_memory
from atbench.evaluation.activity import Activity
from atbench.models import Cast, attack_mode, image_type
from atbench.models.cuda_settings import cuda_settings
from atbench.runs.seeding import derive_seed, seed_global

Sum = Callable[[Tensor], Tensor]
Result = TypeVar("Result")


class EvalModel:
    """A network under evaluation: eval mode and frozen inside `ready`, everything restored afterwards.

    Counts the images that went forward (`passes`), and of those how many were asked for a gradient (`gradients`).
    `rank`, `world` and `reduce` (a sum over processes) make it one of several that share the work.

    dtype: of images and logits, whatever the network computes in; `cast_network` casts at its boundary.
    activity: what runs now; `stage` is said before its name; `on_forward` is called before every pass. `say` takes a
    line for the user.
    random: whether it answers one image differently from pass to pass (`audit.outputs.randomness_source`).
    """

    def __init__(
        self, network: nn.Module, batch_size: int, rank: int = 0, world: int = 1, reduce: Sum = lambda t: t
    ) -> None:
        self.network, self.batch_size = network, batch_size
        self.rank, self.world, self.reduce = rank, world, reduce
        self.device, self.dtype = next(network.parameters()).device, image_type(network)
        self.cast_network = Cast(network)
        self.passes = self.gradients = 0
        self.random = False
        self.stage, self.activity = "", Activity("")
        self.on_forward: Callable[[EvalModel], None] = lambda eval_model: None
        self.say: Callable[[str], None] = lambda text: None

    def doing(self, name: str, done: int = 0, total: int = 0, broken: int | None = None) -> None:
        """Say what runs now."""
        self.activity = Activity(f"{self.stage} {name}".strip(), done, total, broken)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A block in which the network is in eval mode and frozen, and float32 has all its digits on CUDA too."""
        with attack_mode(self.network, "eval"), cuda_settings("ieee"):
            yield

    @contextmanager
    def answering_with(self, network: nn.Module) -> Iterator[None]:
        """A block in which a part of the network, a member of an ensemble, gives the logits."""
        whole = self.cast_network
        self.cast_network = Cast(network)
        try:
            yield
        finally:
            self.cast_network = whole

    def logits(self, x: Tensor) -> Tensor:
        """Logits, counted and checked: argmax of NaN is class 0, and would pass for a prediction."""
        self.on_forward(self)
        self.passes += len(x)
        self.gradients += len(x) * int(x.requires_grad)
        logits: Tensor = self.cast_network(x)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits).all(dim=1)).nonzero()[0])
            raise NumericalError(
                "logits", "NaN or infinite", f"first in row {row} of a batch", "check the weights and the images"
            )
        return logits

    def seeded_logits(self, x: Tensor, indices: Tensor, seed: int, *what: str) -> Tensor:
        """Logits (B, K) that decide what is right and what is broken.

        A network that answers at random gets one image at a time, torch seeded by its index (B,): it must draw the same
        in another batch and when it is verified.
        """
        if not self.random or len(x) == 0:
            return self.logits(x)
        logits = []
        for image, index in zip(x.split(1), indices.tolist(), strict=True):
            seed_global(derive_seed(seed, "judged", *what, index), self.device)
            # Beside a copy of itself, because BatchNorm in train mode refuses a batch of one.
            logits.append(self.logits(image.expand(2, *image.shape[1:]).contiguous())[:1])
        return torch.cat(logits)

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """This process's part of the examples `rows`, in batches."""
        own = rows[self.rank :: self.world]
        return iter(own.split(self.batch_size) if len(own) else ())

    def map_batches(self, rows: Tensor, work: Callable[[Tensor], Result]) -> Iterator[tuple[Tensor, Result]]:
        """Each batch of this process's part of the examples `rows`, and `work(batch)`.

        A batch for which memory runs out is halved, and later ones are as small: an example's outcome does not depend
        on its batch, unless the network answers at random.
        """
        own = rows[self.rank :: self.world]
        while len(own):
            batch, results = own[: self.batch_size], list[Result]()
            try:
                results.append(work(batch))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(batch) == 1 or self.random:
                    raise
            # After the block: the traceback keeps activations.
            if results:
                yield batch, results[0]
                own = own[len(batch) :]
                continue
            self.batch_size = len(batch) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(f"out of memory: batches of {self.batch_size} images from here on, with the same results")

    def load(self, images: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `rows` as floats in [0, 1], with their labels, where the network is."""
        rows = rows.to(images.x.device)
        return images.floats(rows, self.dtype).to(self.device), images.y[rows].to(self.device)

    def correct(self, images: Images) -> Tensor:
        """(n,) booleans, on the CPU: which clean images are classified right."""
        right = torch.zeros(len(images), dtype=torch.long, device=self.device)

        def is_right(rows: Tensor) -> Tensor:
            self.doing("clean", int(rows[0]), len(images))
            x, y = self.load(images, rows)
            return (self.seeded_logits(x, images.indices(rows), 0, "clean").argmax(dim=1) == y).long()

        with self.ready(), torch.no_grad():
            for rows, found in self.map_batches(torch.arange(len(images)), is_right):
                right[rows.to(self.device)] = found
        return self.reduce(right).bool().cpu()


def weights_sha256(network: nn.Module) -> str:
    """Checksum over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
