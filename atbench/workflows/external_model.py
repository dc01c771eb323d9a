"""External networks: code and weights that no run of atbench trained, checked before they are attacked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from atbench.config import argv, values
from atbench.config.untrusted import EVALUATED, only_repeats_targets, refuse_code, refuse_interpolations
from atbench.data import Source
from atbench.errors import ConfigError, DataError
from atbench.evaluation import EvalModel, weights_sha256
from atbench.models import weight_files
from atbench.reporting.wording import both_forms
from atbench.runs import sweep
from atbench.runs.run_dir import new_run_dir, write_json, write_text
from atbench.workflows import factory
from atbench.workflows.environment import environment_record
from atbench.workflows.pgd_configs import make_pgd_config

_FIXED = ("dataset", "model", "name")


def new_config(composed: DictConfig) -> DictConfig:
    """The configuration of a new evaluation, with threat and absolute path. Raises ConfigError and DataError.

    Unlike a run's it has `checkpoint`, the file of the weights (null: the network loads them itself);
    `eval.checkpoints` has one name, that of the record.
    """
    if composed.model is None and composed.checkpoint is None:
        fix = "write `atbench eval RUN`, or model._target_=mine.make_model checkpoint=FILE dataset=NAME"
        raise ConfigError("eval", "nothing", "there is nothing to attack", fix)
    if composed.model is None:
        fix = "write model._target_=mine.make_model, or model=NAME (`atbench list models`)"
        raise ConfigError("model", "nothing", "weights do not determine the network", fix)
    refuse_nameless(composed.model)
    if composed.dataset is None:
        fix = "write dataset=NAME (`atbench list datasets`)"
        raise ConfigError("dataset", "nothing", "a network does not determine its data set", fix)
    typed = values.resolve(composed)
    file = typed.checkpoint
    if file is None and typed.model._target_.startswith("atbench.") and "module" not in typed.model:
        raise ConfigError("checkpoint", "nothing", "networks of atbench start at random", "write checkpoint=FILE")
    if file is not None and not Path(file).is_file():
        raise DataError("checkpoint", file, "there is no such file", "correct the path")
    stem = re.sub(r"[^\w+-]", "_", Path(file).stem if file else network_target(typed).rpartition(".")[2])
    written = values.recorded(typed)
    copied = {key: written[key] for key in ("seed", "device", "threads", "runs", "dataset", "model", "eval")}
    cfg = OmegaConf.create(
        {
            "name": typed.name or f"{typed.dataset.about.name}-{stem}",
            **copied,
            "data_dir": written["data_dir"] or "data",
            "checkpoint": str(Path(file).absolute()) if file else None,
        }
    )
    norm = "linf" if "linf" in cfg.dataset.threat else next(iter(cfg.dataset.threat))
    cfg.attack = {"norm": norm, "eps": cfg.dataset.threat[norm].eps}
    return _with_threat(cfg, typed, [stem])


def config_from_folder(composed: DictConfig, saved: dict[str, Any], typed: list[str]) -> DictConfig:
    """The configuration of an earlier evaluation, with `eval`, `seed` and the path of `checkpoint` as typed."""
    words = [word.lstrip("+~").partition("=")[0] for word in typed[1:] if "=" in word]
    keys = {key.partition(".")[0] for key in words if not key.endswith("._target_")}
    for key in _FIXED:
        if key in keys or (composed[key] is not None and not only_repeats_targets(composed[key], saved[key])):
            why = "a folder holds one network and one data set"
            raise ConfigError(key, "given with a folder", why, "leave it out, or leave the folder out")
    refuse_code(saved, EVALUATED, typed)
    refuse_interpolations(saved, [key for key in ("data_dir", "checkpoint") if composed[key] is not None])
    composed.model, composed.dataset = None, saved["dataset"]  # an attack of training has the data set's radius
    new = values.resolve(composed)
    cfg = OmegaConf.create(saved)
    cfg.update({"device": new.device, "threads": new.threads, "data_dir": new.data_dir or cfg.data_dir})
    if "seed" in keys:
        cfg.seed = new.seed
    if new.checkpoint is not None:
        cfg.checkpoint = str(Path(new.checkpoint).absolute())
    if not keys & {"eval", "attack"}:
        return cfg
    names, cfg.eval = list(cfg.eval.checkpoints), new.eval
    return _with_threat(cfg, new, names)


def _with_threat(cfg: DictConfig, typed: DictConfig, names: list[str]) -> DictConfig:
    """Add the attack of `attack=`, and set the threat where `eval` does not."""
    OmegaConf.set_readonly(cfg, False)
    refuse_radius(argv.as_typed())
    cfg.eval.checkpoints = names
    if typed.attack is not None:
        cfg.eval.attacks = {**cfg.eval.attacks, typed.attack.about.name: typed.attack}
    threat = make_pgd_config(cfg, 1, norm=cfg.eval.norm, eps=cfg.eval.eps)
    cfg.attack = {"norm": threat.norm, "eps": threat.eps}
    return cfg


def refuse_nameless(model: DictConfig) -> None:
    """Refuse options of a network (`model.width=8`) without a network."""
    if "_target_" not in model:
        key = f"model.{next((str(key) for key in model), '')}"
        raise ConfigError(key, "given", "no network is named", "write model=NAME or model._target_=...")


def refuse_radius(typed: list[str]) -> None:
    """Refuse a norm or radius of the attack: it has those of the evaluation."""
    for word in typed[1:]:
        key, equals, value = word.lstrip("+~").partition("=")
        if equals and key in ("attack.eps", "attack.norm"):
            own = key.replace("attack", "eval")
            why = "an evaluation sets norm and radius of its attacks"
            raise ConfigError(key, value, why, f"write {own}={value}")


def network_target(cfg: DictConfig) -> str:
    return str(cfg.model.module._target_ if "module" in cfg.model else cfg.model._target_)


def load_external_network(cfg: DictConfig, source: Source, device: torch.device) -> nn.Module:
    """The network with its weights. Raises DataError for weights that do not fit, are NaN or are not this folder's,
    ConfigError for a network without parameters.
    """
    network = factory.make_model(cfg, source)
    if cfg.checkpoint is None:
        weight_files.refuse_nan(network)
    elif not Path(cfg.checkpoint).is_file():
        raise DataError("checkpoint", cfg.checkpoint, "does not exist any more", "give its new path: checkpoint=FILE")
    else:
        weight_files.load_weights(network, weight_files.read_weights(Path(cfg.checkpoint)))
    if next(network.parameters(), None) is None:
        raise ConfigError("model._target_", network_target(cfg), "makes a network without parameters", "name another")
    network = network.to(device)
    if cfg.get("weights_sha256", checksum := weights_sha256(network)) != checksum:
        why = f"holds other weights than were evaluated here ({checksum[:12]}, not {cfg.weights_sha256[:12]})"
        fix = "evaluate them on their own, without the folder"
        raise DataError("checkpoint", cfg.checkpoint or network_target(cfg), why, fix)
    return network


def check_logits(cfg: DictConfig, network: nn.Module, source: Source, x: Tensor) -> None:
    """Run the network on one image, (1, C, H, W). Raises ConfigError unless it returns logits (1, classes), with a
    gradient if PGD is to run.
    """
    name, fix = network_target(cfg), "name the data set that it is for, or its options as model.key=value"
    logits = first_logits(network, name, x, f"the images of {source.name}", fix)
    if logits.shape[1] != len(source.classes):
        why = f"gives {logits.shape[1]} logits, and {source.name} has {len(source.classes)} classes"
        raise ConfigError("model", name, why, fix)
    if cfg.eval.steps and not logits.requires_grad:
        why = "gives logits without a gradient, and PGD needs one"
        raise ConfigError("model", name, why, "leave PGD out: eval.steps=[]")


def first_logits(network: nn.Module, name: str, x: Tensor, what: str, fix: str, key: str = "model") -> Tensor:
    """Logits (1, K) of one image, (1, C, H, W), differentiable if the network is. Raises ConfigError, of a `key`, which
    says `what` the image is and how to `fix` it, where the network called `name` does not take it or returns anything
    else.
    """
    eval_model = EvalModel(network, 1)
    x = x.to(eval_model.device, eval_model.dtype).requires_grad_()
    try:
        with eval_model.ready():
            logits = eval_model.cast_network(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        size = "×".join(str(side) for side in x.shape[1:])
        raise ConfigError(key, name, f"cannot take {what}, {size} ({message})", fix) from error
    if not isinstance(logits, Tensor):
        why = f"returns a {type(logits).__name__}"
        raise ConfigError(key, name, why, "return the logits alone, (images, classes)")
    if logits.ndim != 2 or len(logits) != 1:
        why = f"answers one image with a tensor of {tuple(logits.shape)}"
        raise ConfigError(key, name, why, "return logits, (images, classes)")
    return logits


def external_facts(cfg: DictConfig, network: nn.Module, source: Source, images: int) -> list[tuple[str, str]]:
    """(name, value) lines about the evaluation for the terminal."""
    count = sum(parameter.numel() for parameter in network.parameters())
    shape = "×".join(str(side) for side in source.shape)
    return [
        ("network", f"{network_target(cfg)}, {count:,} parameters"),
        ("weights", cfg.checkpoint or "its own"),
        ("data", f"{cfg.dataset.about.name}: {images:,} test images; {len(source.classes)} classes of {shape}"),
        ("threat", f"{cfg.attack.norm}, eps {both_forms(cfg.attack.eps)}"),
    ]


def create_folder(cfg: DictConfig, network: nn.Module, source: Source, device: torch.device, processes: int) -> Path:
    """The folder of a new evaluation, with command line and environment."""
    folder = new_run_dir(sweep.sweep_folder() or Path(cfg.runs), f"eval-{cfg.name}")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    about = {"parameters": parameters, "device": str(device), "world": processes}
    write_text(folder / "as_typed.yaml", OmegaConf.to_yaml({"argv": argv.as_typed()}))
    write_json(folder / "environment.json", environment_record(cfg, source, about))
    return folder
