"""The outer minimisation: trainer, optimizers, averages, weight perturbation, checkpoints, several processes."""

from atbench.training import checkpoint
from atbench.training.averaging import Average, Ema, Swa
from atbench.training.awp import WeightPerturbation
from atbench.training.distributed import World, threads, world
from atbench.training.optim import Group, make_group
from atbench.training.trainer import Recipe, Trainer, Watcher

__all__ = [
    "Average",
    "Ema",
    "Group",
    "Recipe",
    "Swa",
    "Trainer",
    "Watcher",
    "WeightPerturbation",
    "World",
    "checkpoint",
    "make_group",
    "threads",
    "world",
]
