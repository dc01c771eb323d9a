"""Run folders of somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from atbench.config import registry, values
from atbench.training import checkpoint


def saved(**parts: Any) -> dict[str, Any]:
    """The configuration of a run, with these parts of it another's."""
    cfg = OmegaConf.create(
        {
            "seed": 0,
            "data_dir": "data",
            "dataset": yaml.safe_load((registry.conf_dir() / "dataset" / "digits.yaml").read_text()),
            "model": {"_target_": "atbench.models.cnn.CNN"},
            "attack": {"_target_": "atbench.attacks.ascent.gradient_ascent.GradientAttack", "norm": "linf", "eps": 0.1},
            "method": {"_target_": "atbench.methods.standard.Standard"},
            "eval": {"checkpoints": ["best"]},
        }
    )
    for key, node in parts.items():
        OmegaConf.update(cfg, key.replace("__", "."), node, merge=False)
    return values.recorded(cfg)


def put(run: Path, **parts: Any) -> None:
    """A run folder with a checkpoint, both of this configuration."""
    checkpoint.save(run / "checkpoints" / "best.pt", {"config": saved(**parts), "model": {}, "epoch": 1})
    (run / "config.yaml").write_text(yaml.safe_dump(saved(**parts)))
