"""Evaluation plans from `eval`: threat, attacks, rejection; and the networks in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
from atbench.config.untrusted import refuse_code, refuse_interpolations
from atbench.data import Images, Source
from atbench.errors import ConfigError
from atbench.evaluation import PGDConfig, Plan
from atbench.evaluation.few_classes import adapt_attacks
from atbench.evaluation.rejection import CONFIDENT, RejectionPlan
from atbench.evaluation.unforeseen import UnforeseenPlan, unforeseen_plan
from atbench.models.memory_format import use_channels_last
from atbench.training import World, checkpoint
from atbench.workflows import external_model, factory
from atbench.workflows.pgd_configs import evaluation_pgd, make_pgd_config
from atbench.workflows.resume import is_external, resolve_target


def make_plan(cfg: DictConfig, source: Source, world: World, test: Images) -> Plan:
    """The plan that `eval` describes, in the threat of training or the one that `eval` names."""
    settings = cfg.eval

    def load(path: str) -> nn.Module:
        return load_run_network(path, source, world.device).requires_grad_(False)

    norms = {norm: make_pgd_config(cfg, settings.eps_steps, settings.restarts, norm=norm) for norm in settings.norms}
    plan = make_robust_plan(cfg, source.name, len(source.classes), test, load)
    return replace(
        plan,
        limit=settings.limit,
        audit=settings.audit,
        corruptions=list(settings.corruptions),
        members=bool(settings.get("members")),  # an evaluation's configuration of an earlier version lacks the key
        unforeseen=make_unforeseen(cfg, source, test),
        reject=make_rejection(settings, source, plan.threat, world),
        norms={norm: config for norm, config in norms.items() if norm != plan.threat.norm},
        examples=settings.examples,
    )


def make_robust_plan(cfg: DictConfig, data: str, classes: int, test: Images, load: Callable[[str], nn.Module]) -> Plan:
    """The part of `eval` that measures robust accuracy in the main threat: PGD and the attacks.

    data, classes: name of the data set and its number of classes. load: the frozen network of another run, for attacks
    that transfer.
    """
    settings, threat = cfg.eval, evaluation_pgd(cfg)
    kwargs = {"norm": threat.norm, "eps": threat.eps, "images": test, "load": load}
    attacks = {name: make_attack(node, f"eval.attacks.{name}", kwargs) for name, node in settings.attacks.items()}
    if (needed := fewest_classes(label_objective(threat.objective))) > classes:
        why = f"needs {needed} classes, and {data} has {classes}"
        raise ConfigError("eval.objective", threat.objective, why, "use ce or margin")
    fitting, notes = adapt_attacks(attacks, classes, adapt=(settings.about or {}).get("family") == "AutoAttack")
    return Plan(
        threat=threat,
        steps=list(settings.steps),
        eps_grid=list(settings.eps_grid),
        eps_steps=settings.eps_steps,
        attacks=fitting,
        sequential=settings.sequential,
        notes=notes,
    )


def make_unforeseen(cfg: DictConfig, source: Source, test: Images) -> UnforeseenPlan | None:
    """Distortions at the sizes of the data set's calibration, or of one for images of about this size."""
    if not cfg.eval.get("unforeseen"):  # an evaluation's configuration of an earlier version does not know the key
        return None
    settings = cfg.eval.unforeseen_steps, cfg.eval.unforeseen_data
    return unforeseen_plan(list(cfg.eval.unforeseen), *settings, source.name, test, cfg.seed)


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
    held = source.train.take(source.split_indices()[0]).to(world.device)
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


def load_run_network(
    target: str,
    source: Source | None,
    device: torch.device,
    checkpoint: str = "best",
    data_dir: str | Path | None = None,
) -> nn.Module:
    """The network of a run or of a checkpoint file, in eval mode; without a `source` the run's own is made."""
    folder, (name,), saved = resolve_target(target, [checkpoint])
    refuse_code(saved, ("model",) if source else ("model", "dataset.source"), argv.as_typed())
    refuse_interpolations({key: saved[key] for key in (("model",) if source else ("model", "dataset", "data_dir"))})
    cfg = OmegaConf.create({**saved, "data_dir": str(data_dir or saved["data_dir"])})
    source = source or factory.make_source(cfg)
    return load_network(cfg, source, device, folder / "checkpoints" / f"{name}.pt")[0].eval()


def load_network(cfg: DictConfig, source: Source, device: torch.device, path: Path) -> tuple[nn.Module, int | None]:
    """The network in a checkpoint, in channels_last where it runs so, and its epoch, None for an external network."""
    if is_external(cfg):
        return external_model.load_external_network(cfg, source, device), None
    state = checkpoint.read(path, device)
    network = factory.make_model(cfg, source).to(device)
    network.load_state_dict(state["model"])
    use_channels_last(network, network, source.shape, required=False)
    return network, int(state["epoch"])
