"""PGD of validation, of the collapse watch and of evaluation, as the configuration sets it."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from atbench.errors import ConfigError, hint
from atbench.evaluation import PGDConfig


def make_pgd_config(
    cfg: DictConfig,
    steps: int,
    restarts: int = 1,
    objective: str = "ce",
    step_size: float | None = None,
    norm: str | None = None,
    eps: float | None = None,
    key: str = "eval.norm",
) -> PGDConfig:
    """The attack of validation and evaluation: the trained norm and ε unless others are named, a uniform start, the
    data set's ratio of step size to ε.

    The method's own start, step count and step size do not weaken it. A norm that was not trained for has the data
    set's ε. `key` is where the norm was named, for the message.
    """
    norm = norm or cfg.attack.norm
    if norm not in cfg.dataset.threat:
        raise ConfigError(key, norm, "the data set has no radius for it", hint(norm, cfg.dataset.threat))
    usual = cfg.dataset.threat[norm]
    if eps is None:
        eps = cfg.attack.eps if norm == cfg.attack.norm else usual.eps
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not math.isfinite(eps):
        key = "attack.eps" if eps == cfg.attack.get("eps") else "eval.eps"
        raise ConfigError(key, eps, "is not a finite number", "write it as 8/255 or 0.5, without a unit")
    if step_size is None:
        step_size = usual.step_size * (eps / usual.eps if usual.eps else 1.0)
    return PGDConfig(norm, float(eps), float(step_size), steps, restarts=restarts, objective=objective, seed=cfg.seed)


def evaluation_pgd(cfg: DictConfig) -> PGDConfig:
    """The PGD of `eval` in the main threat, at the most steps that it reports."""
    settings = cfg.eval
    steps, own = max(settings.steps, default=settings.eps_steps), (settings.step_size, settings.norm, settings.eps)
    return make_pgd_config(cfg, steps, settings.restarts, settings.objective, *own)


def selection_attacks(cfg: DictConfig) -> list[PGDConfig]:
    """What the best checkpoint is chosen by: the run's own threat, then those of `train.selection.norms` besides."""
    steps, key = cfg.train.selection.steps, "train.selection.norms"
    named = [make_pgd_config(cfg, steps, norm=norm, key=key) for norm in cfg.train.selection.norms]
    own = make_pgd_config(cfg, steps)
    return [own, *(threat for threat in named if threat.norm != own.norm)]
