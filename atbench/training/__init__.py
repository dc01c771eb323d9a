"""The outer minimisation: trainer, training step, optimizers, weight averages, AWP, checkpoints, processes."""

from atbench.training import checkpoint
from atbench.training.callbacks import Callbacks
from atbench.training.collapse import CollapseWatch, Guard
from atbench.training.cpu_memory import reused_memory
from atbench.training.cpu_threads import threads
from atbench.training.distributed import World, world
from atbench.training.param_groups import Group, make_group
from atbench.training.recipe import Recipe
from atbench.training.trainer import Trainer
from atbench.training.weight_averaging import Average, Ema, Fawa, Swa
from atbench.training.weight_perturbation import WeightPerturbation
