"""The rule of `train.channels_last`."""

from __future__ import annotations

from omegaconf import DictConfig

from atbench.training import Trainer


def wants_channels_last(cfg: DictConfig) -> bool:
    """Whether training is to use channels_last: `auto` is on wherever the network runs in it.

    A rule and not a measurement: what is timed at the start of a run would not be the same in the next.
    """
    return cfg.train.channels_last is not False


def layout_warnings(cfg: DictConfig, trainer: Trainer) -> list[str]:
    """What is to be said of a network that does not run in the layout that it was to have."""
    if trainer.recipe.channels_last or not wants_channels_last(cfg):
        return []
    return [
        "train.channels_last: the network does not run in channels_last (.flatten(1) in place of .view would), "
        "and is trained contiguous, which is slower"
    ]
