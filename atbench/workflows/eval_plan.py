"""What `eval` describes, as objects: threat, attacks, rejection; and the networks in checkpoints."""

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
from atbench.config.untrusted import refuse_code, refuse_reading
from atbench.data import Images, Source
from atbench.errors import ConfigError
from atbench.evaluation import PGDConfig, Plan
from atbench.evaluation.few_classes import fitted
from atbench.evaluation.rejection import CONFIDENT, Reject
from atbench.training import World, checkpoint
from atbench.workflows import external_model, factory
from atbench.workflows.resume import is_external, target_of


def make_plan(cfg: DictConfig, source: Source, world: World, test: Images) -> Plan:
    """The evaluation that `eval` describes, in the threat that the network was trained for or that `eval` names."""
    chosen = cfg.eval

    def other(path: str) -> nn.Module:
        return opened(path, source, world.device).requires_grad_(False)

    norms = {norm: factory.make_pgd_config(cfg, chosen.eps_steps, chosen.restarts, norm=norm) for norm in chosen.norms}
    plan = robust_plan(cfg, source.name, len(source.classes), test, other)
    return replace(
        plan,
        limit=chosen.limit,
        audit=chosen.audit,
        corruptions=list(chosen.corruptions),
        reject=make_reject(chosen, source, plan.threat, world),
        norms={norm: its for norm, its in norms.items() if norm != plan.threat.norm},
        examples=chosen.examples,
    )


def robust_plan(cfg: DictConfig, data: str, classes: int, test: Images, load: Callable[[str], nn.Module]) -> Plan:
    """The part of `eval` that measures robust accuracy in the main threat: PGD and the attacks.

    data, classes: name of the data set and its number of classes. load: opens the network of another run, for attacks
    that transfer.
    """
    chosen = cfg.eval
    threat = factory.make_pgd_config(
        cfg, max(chosen.steps, default=chosen.eps_steps), chosen.restarts, chosen.objective, chosen.step_size,
        chosen.norm, chosen.eps,
    )  # fmt: skip
    offered = {"norm": threat.norm, "eps": threat.eps, "images": test, "load": load}
    asked = {name: make_attack(node, f"eval.attacks.{name}", offered) for name, node in chosen.attacks.items()}
    if (needed := fewest_classes(label_objective(threat.objective))) > classes:
        why = f"needs {needed} classes, and {data} has {classes}"
        raise ConfigError("eval.objective", threat.objective, why, "use ce or margin")
    attacks, notes = fitted(asked, classes, adapt=(chosen.about or {}).get("family") == "AutoAttack")
    return Plan(
        threat=threat,
        steps=list(chosen.steps),
        eps_grid=list(chosen.eps_grid),
        eps_steps=chosen.eps_steps,
        attacks=attacks,
        sequential=chosen.sequential,
        notes=notes,
    )


def make_reject(chosen: DictConfig, source: Source, threat: PGDConfig, world: World) -> Reject | None:
    """Rejection as `eval` asks for it, in the evaluation's threat; its threshold stands on the held-out part."""
    if chosen.get("reject") is None:  # an evaluation's configuration of an earlier version does not know the key
        return None
    if CONFIDENT in chosen.attacks:
        why = "eval.reject runs it on every image"
        raise ConfigError(f"eval.attacks.{CONFIDENT}", "given with eval.reject", why, "leave one of them out")
    if source.validation == 0:
        why = f"its threshold stands on held-out images, and {source.name} holds none out"
        raise ConfigError("eval.reject", chosen.reject, why, "set dataset.source.validation")
    settings = {"steps": chosen.reject_steps, "restarts": chosen.reject_restarts, "rel_step_size": 0.25}
    held = source.train.take(source.parts()[0]).to(world.device)
    return Reject(chosen.reject, held, MaxConfidence(threat.norm, threat.eps, **settings), settings)


def make_attack(node: DictConfig, path: str, offered: Mapping[str, Any]) -> tuple[Attack, dict[str, Any]]:
    """An attack in the threat of the evaluation, and the settings that it was made from.

    A search of the training side (`attack=pgd`) keeps its ratio of step size to ε.
    """
    settings = {key: value for key, value in values.plain(node).items() if key not in ("about", "norm", "eps")}
    if "step_size" in settings and node.get("eps"):
        settings["step_size"] = settings["step_size"] / node.eps * offered["eps"]
    made = build(settings, path, **accepted_kwargs(settings, path, offered))
    return (AscentAttack(made) if isinstance(made, GradientAttack) else made), settings


def opened(
    target: str,
    source: Source | None,
    device: torch.device,
    checkpoint: str = "best",
    data_dir: str | Path | None = None,
) -> nn.Module:
    """The network of a run or of a checkpoint file, in eval mode; without a `source` the run's own is made."""
    folder, (name,), saved = target_of(target, [checkpoint])
    refuse_code(saved, ("model",) if source else ("model", "dataset.source"), argv.as_typed())
    refuse_reading({key: saved[key] for key in (("model",) if source else ("model", "dataset", "data_dir"))})
    cfg = OmegaConf.create({**saved, "data_dir": str(data_dir or saved["data_dir"])})
    source = source or factory.make_source(cfg)
    return load(cfg, source, device, folder / "checkpoints" / f"{name}.pt")[0].eval()


def load(cfg: DictConfig, source: Source, device: torch.device, path: Path) -> tuple[nn.Module, int | None]:
    """The network in a checkpoint, and the epoch that it is of, which of a foreign network is not known."""
    if is_external(cfg):
        return external_model.network(cfg, source, device), None
    state = checkpoint.read(path, device)
    network = factory.make_model(cfg, source).to(device)
    network.load_state_dict(state["model"])
    return network, int(state["epoch"])
