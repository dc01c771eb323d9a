"""Evaluation plans from `eval`: threat, attacks, rejection; and the networks in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from atbench.attacks import AscentAttack, Attack, GradientAttack
from atbench.attacks.gradient.max_confidence import MaxConfidence
from atbench.attacks.losses import fewest_classes, label_objective
from atbench.config import argv, values
from atbench.config.instantiate import accepted_kwargs, build
from atbench.config.untrusted import refuse_code, refuse_reading
from atbench.data import Images, Source
from atbench.errors import ConfigError
from atbench.evaluation import PGDConfig, Plan
from atbench.evaluation.few_classes import adapt_attacks
from atbench.evaluation.rejection import CONFIDENT, RejectionPlan
from atbench.training import World, checkpoint
from atbench.workflows import external_model, factory
from atbench.workflows.resume import is_external, resolve_target


def make_plan(cfg: DictConfig, source: Source, world: World, test: Images) -> Plan:
    """The plan that `eval` describes, in the threat of training or the one that `eval` names."""
    settings, restarts = cfg.eval, cfg.eval.restarts
    steps, objective = max(settings.steps, default=settings.eps_steps), settings.objective
    own = settings.step_size, settings.norm, settings.eps
    threat = factory.make_pgd_config(cfg, steps, restarts, objective, *own)
    norms = {norm: factory.make_pgd_config(cfg, settings.eps_steps, restarts, norm=norm) for norm in settings.norms}

    def load(path: str) -> nn.Module:
        return load_frozen_network(path, source, world.device)

    kwargs = {"norm": threat.norm, "eps": threat.eps, "images": test, "load": load}
    attacks = {name: make_attack(node, f"eval.attacks.{name}", kwargs) for name, node in settings.attacks.items()}
    classes, needed = len(source.classes), fewest_classes(label_objective(threat.objective))
    if needed > classes:
        why = f"needs {needed} classes, and {source.name} has {classes}"
        raise ConfigError("eval.objective", threat.objective, why, "use ce or margin")
    fitting, notes = adapt_attacks(attacks, classes, adapt=(settings.about or {}).get("family") == "AutoAttack")
    return Plan(
        threat=threat,
        steps=list(settings.steps),
        eps_grid=list(settings.eps_grid),
        eps_steps=settings.eps_steps,
        limit=settings.limit,
        attacks=fitting,
        sequential=settings.sequential,
        audit=settings.audit,
        corruptions=list(settings.corruptions),
        reject=make_rejection(settings, source, threat, world),
        norms={norm: config for norm, config in norms.items() if norm != threat.norm},
        examples=settings.examples,
        notes=notes,
    )


def make_rejection(cfg: DictConfig, source: Source, threat: PGDConfig, world: World) -> RejectionPlan | None:
    """Rejection in the evaluation's threat; its threshold is set on the held-out split."""
    if cfg.get("reject") is None:  # an evaluation's configuration of an earlier version does not know the key
        return None
    if CONFIDENT in cfg.attacks:
        why = "eval.reject runs it on every image"
        raise ConfigError(f"eval.attacks.{CONFIDENT}", "given with eval.reject", why, "leave one of them out")
    if source.validation == 0:
        why = f"its threshold is set on held-out images, and {source.name} has none"
        raise ConfigError("eval.reject", cfg.reject, why, "set dataset.source.validation")
    settings = {"steps": cfg.reject_steps, "restarts": cfg.reject_restarts, "rel_step_size": 0.25}
    held = source.train.take(source.parts()[0]).to(world.device)
    return RejectionPlan(cfg.reject, held, MaxConfidence(threat.norm, threat.eps, **settings), settings)


def make_attack(node: DictConfig, path: str, kwargs: Mapping[str, Any]) -> tuple[Attack, dict[str, Any]]:
    """An attack in the threat of the evaluation, and the settings that it was made from.

    An attack of training (`attack=pgd`) keeps its ratio of step size to ε.
    """
    settings = {key: value for key, value in values.plain(node).items() if key not in ("about", "norm", "eps")}
    if "step_size" in settings and node.get("eps"):
        settings["step_size"] = settings["step_size"] / node.eps * kwargs["eps"]
    attack = build(settings, path, **accepted_kwargs(settings, path, kwargs))
    return (AscentAttack(attack) if isinstance(attack, GradientAttack) else attack), settings


def load_frozen_network(target: str, source: Source, device: torch.device) -> nn.Module:
    """The network of another run (its best checkpoint) or of a checkpoint, frozen, in eval mode."""
    folder, (name,), saved = resolve_target(target, ["best"])
    refuse_code(saved, ("model",), argv.as_typed())
    refuse_reading(saved["model"])
    network, _ = load_network(OmegaConf.create(saved), source, device, folder / "checkpoints" / f"{name}.pt")
    return network.eval().requires_grad_(False)


def load_network(cfg: DictConfig, source: Source, device: torch.device, path: Path) -> tuple[nn.Module, int | None]:
    """The network in a checkpoint and its epoch, None for an external network."""
    if is_external(cfg):
        return external_model.load_external_network(cfg, source, device), None
    state = checkpoint.read(path, device)
    network = factory.make_model(cfg, source).to(device)
    network.load_state_dict(state["model"])
    return network, int(state["epoch"])
