"""Base classes of methods that train on labelled images and on an unlabelled pool."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from atbench.data import Batch, Images, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Method
from atbench.methods.stage import Stage


class PoolMethod(Method):
    """A method whose batches have labelled rows and, in `batch.extra`, rows of the unlabelled pool.

    `train.extra_data.fraction` is the pool's share of a batch. An epoch is ⌊N / B⌋ batches, N the data set's images
    with a label and without; further images (`train.extra_data.path`) are not counted. Both kinds are walked through in
    permutations that go on from epoch to epoch.
    """

    requires_hard_labels = True

    pool: Images | None = None
    train_size = 0
    share = 0.0  # of a batch that is pool rows
    dtype = torch.float32

    def setup(self, data: TrainData) -> None:
        if data.pool is None:
            why = f"{type(self).__name__} needs an unlabelled pool"
            fix = "set train.extra_data.labelled=0.5 train.extra_data.fraction=0.5"
            raise ConfigError("train.extra_data.labelled", None, why, fix)
        self.pool, self.train_size, self.dtype = data.pool, len(data.train), data.dtype
        self.share = data.extra_size / data.batch_size

    def pool_labels(self, extra: Batch) -> Tensor:
        """Classes of pool rows; −1 where there are none."""
        return extra.y

    def merge(self, batch: Batch) -> Batch:
        """Labelled rows, then pool rows, whose indices go on after the train split's."""
        if (extra := batch.extra) is None:
            return batch
        x, y = torch.cat([batch.x, extra.x]), torch.cat([batch.y, self.pool_labels(extra)])
        index = torch.cat([batch.index, extra.index + self.train_size])
        return replace(batch, x=x, y=y, index=index, view=None, extra=None)

    def merged_start(self, batch: Batch) -> Tensor:
        """The attack's starting points for the rows of `merge(batch)`.

        Each part has its own draws: rows of a joint draw would depend on how processes share them.
        """
        start = self.attack.begin(batch.x, self.attack.eps, self.rng("search"))
        if batch.extra is None:
            return start
        return torch.cat([start, self.attack.begin(batch.extra.x, self.attack.eps, self.rng("pool"))])


class PseudoLabelled(PoolMethod):
    """A method whose pool rows have the class that a standard classifier, trained on the labelled images, predicts.

    Hard labels of the images without augmentation, computed once and kept in the state.
    """

    LABEL_CHUNK = 1000  # images a forward of the labeller: bounds memory, changes nothing

    labels: Tensor

    def setup(self, data: TrainData) -> None:
        super().setup(data)
        assert data.pool is not None
        # -1 is no class: a run that skipped `load_pretrained` fails at its first loss.
        self.register_buffer("labels", torch.full((len(data.pool),), -1, device=data.device))

    def pretraining(self) -> dict[str, Stage]:
        return {"labeller": Stage(method={"_target_": "atbench.methods.standard.Standard"})}

    @torch.no_grad()
    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        assert self.pool is not None, "`setup` comes first"
        for rows in torch.arange(len(self.pool), device=self.labels.device).split(self.LABEL_CHUNK):
            self.labels[rows] = stages["labeller"](self.pool.floats(rows, self.dtype)).argmax(dim=1)

    def pool_labels(self, extra: Batch) -> Tensor:
        return self.labels[extra.index]
