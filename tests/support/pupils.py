"""Methods with a robust teacher on a tiny world, their teachers handed over as stages are."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from atbench.data import Batch, TrainData
from atbench.methods.teacher import Taught
from atbench.models import Frozen
from tests.support import worlds

#: Seeds of the teachers' networks, by stage; the student's is 0.
SEEDS = {"teacher": 7, "clean_teacher": 8}
Pupil = TypeVar("Pupil", bound=Taught)


def teacher(name: str = "teacher", norm: str = "none") -> nn.Module:
    """A teacher's network in eval mode, surer of itself than an untrained one."""
    network = worlds.cnn(norm=norm, seed=SEEDS[name]).eval()
    network.head.weight.data.mul_(40)
    return network


def make(cls: type[Pupil], given: TrainData | None = None, norm: str = "none", **options: Any) -> tuple[Pupil, Batch]:
    """A method in train mode before its first batch; attack settings are `attack={...}`."""
    given = given or worlds.data()
    search = worlds.attack(**options.pop("attack", {}))
    method = cls(worlds.cnn(norm=norm), search, lambda stage: Frozen(worlds.cnn(norm=norm)), **options)
    method.setup(given)
    method.load_pretrained({name: Frozen(teacher(name, norm)) for name in method.pretraining()})
    worlds.start(method, given)
    return method, given.batch(0, 0)
