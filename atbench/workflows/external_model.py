"""A network that no run of ours trained: somebody's code and weights, looked at before they are attacked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from atbench.config import argv, values
from atbench.config.untrusted import EVALUATED, refuse_code, refuse_reading, repeats
from atbench.data import Source
from atbench.errors import ConfigError, DataError
from atbench.evaluation import EvalModel, weights_sha256
from atbench.models import weight_files
from atbench.reporting.wording import both_forms
from atbench.runs import sweep
from atbench.runs.run_dir import fresh, write_json, write_text
from atbench.workflows import factory
from atbench.workflows.environment import environment

_FIXED = ("dataset", "model", "name")


def asked(composed: DictConfig) -> DictConfig:
    """The configuration of a new evaluation: the threat settled, the file's path absolute. Raises ConfigError and
    DataError.

    It has `checkpoint`, the file of the weights (null: the network has them by itself), which no run has; and in
    `eval.checkpoints` the one name that the record goes by.
    """
    if composed.model is None and composed.checkpoint is None:
        fix = "write `atbench eval RUN`, or model._target_=mine.make_model checkpoint=FILE dataset=NAME"
        raise ConfigError("eval", "nothing", "there is nothing to attack", fix)
    if composed.model is None:
        fix = "write model._target_=mine.make_model, or model=NAME (`atbench list models`)"
        raise ConfigError("model", "nothing", "weights alone do not say what network they are of", fix)
    refuse_nameless(composed.model)
    if composed.dataset is None:
        fix = "write dataset=NAME (`atbench list datasets`)"
        raise ConfigError("dataset", "nothing", "a network does not say what images it is for", fix)
    typed = values.resolve(composed)
    file = typed.checkpoint
    if file is None and typed.model._target_.startswith("atbench.") and "module" not in typed.model:
        raise ConfigError(
            "checkpoint", "nothing", "a network of ours starts at random weights", "write checkpoint=FILE"
        )
    if file is not None and not Path(file).is_file():
        raise DataError("checkpoint", file, "there is no such file", "correct the path")
    stem = re.sub(r"[^\w+-]", "_", Path(file).stem if file else target(typed).rpartition(".")[2])
    written = values.recorded(typed)
    kept = {key: written[key] for key in ("seed", "device", "threads", "runs", "dataset", "model", "eval")}
    cfg = OmegaConf.create(
        {
            "name": typed.name or f"{typed.dataset.about.name}-{stem}",
            **kept,
            "data_dir": written["data_dir"] or "data",
            "checkpoint": str(Path(file).absolute()) if file else None,
        }
    )
    norm = "linf" if "linf" in cfg.dataset.threat else next(iter(cfg.dataset.threat))
    cfg.attack = {"norm": norm, "eps": cfg.dataset.threat[norm].eps}
    return _settled(cfg, typed, [stem])


def again(composed: DictConfig, saved: dict[str, Any], typed: list[str]) -> DictConfig:
    """The configuration of an earlier evaluation: as it was, or with another `eval` where one is typed; `seed` stays
    unless it is typed. `checkpoint` says where the file has gone to.
    """
    given = [word.lstrip("+~").partition("=")[0] for word in typed[1:] if "=" in word]
    keys = {key.partition(".")[0] for key in given if not key.endswith("._target_")}
    for key in _FIXED:
        if key in keys or (composed[key] is not None and not repeats(composed[key], saved[key])):
            why = "a folder is of one network and one data set"
            raise ConfigError(key, "given with a folder", why, "leave it out, or leave the folder out")
    refuse_code(saved, EVALUATED, typed)
    refuse_reading(saved, [key for key in ("data_dir", "checkpoint") if composed[key] is not None])
    composed.model, composed.dataset = (
        None,
        saved["dataset"],
    )  # an attack of the training side has the data set's radius
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
    return _settled(cfg, new, names)


def _settled(cfg: DictConfig, typed: DictConfig, names: list[str]) -> DictConfig:
    """With the attack of `attack=` among the others, and the threat's own numbers where `eval` leaves them open."""
    OmegaConf.set_readonly(cfg, False)
    refuse_radius(argv.as_typed())
    cfg.eval.checkpoints = names
    if typed.attack is not None:
        cfg.eval.attacks = {**cfg.eval.attacks, typed.attack.about.name: typed.attack}
    threat = factory.make_pgd_config(cfg, 1, norm=cfg.eval.norm, eps=cfg.eval.eps)
    cfg.attack = {"norm": threat.norm, "eps": threat.eps}
    return cfg


def refuse_nameless(model: DictConfig) -> None:
    """Refuse options of a network (`model.width=8`) without the network."""
    if "_target_" not in model:
        key = f"model.{next((str(key) for key in model), '')}"
        raise ConfigError(key, "given", "no network is named that has it", "write model=NAME or model._target_=...")


def refuse_radius(typed: list[str]) -> None:
    """Refuse a norm or radius given to the attack: it has those of the evaluation, whatever it is told."""
    for word in typed[1:]:
        key, equals, value = word.lstrip("+~").partition("=")
        if equals and key in ("attack.eps", "attack.norm"):
            own = key.replace("attack", "eval")
            why = "an attack of an evaluation has the evaluation's threat"
            raise ConfigError(key, value, why, f"write {own}={value}")


def target(cfg: DictConfig) -> str:
    """What makes the network, in the words of the configuration."""
    return str(cfg.model.module._target_ if "module" in cfg.model else cfg.model._target_)


def network(cfg: DictConfig, source: Source, device: torch.device) -> nn.Module:
    """The network with its weights. Raises DataError for weights that do not fit, are NaN, or are not those that this
    folder is of, ConfigError for a network without any.
    """
    made = factory.make_model(cfg, source)
    if cfg.checkpoint is None:
        weight_files.refuse_nan(made)
    elif not Path(cfg.checkpoint).is_file():
        raise DataError("checkpoint", cfg.checkpoint, "is not there any more", "say where it is: checkpoint=FILE")
    else:
        weight_files.load(made, weight_files.read(Path(cfg.checkpoint)))
    if next(made.parameters(), None) is None:
        raise ConfigError("model._target_", target(cfg), "makes a network without parameters", "name another")
    made = made.to(device)
    if cfg.get("weights_sha256", known := weights_sha256(made)) != known:
        why = f"holds other weights than were evaluated here ({known[:12]}, not {cfg.weights_sha256[:12]})"
        fix = "evaluate them on their own, without the folder"
        raise DataError("checkpoint", cfg.checkpoint or target(cfg), why, fix)
    return made


def probe(cfg: DictConfig, made: nn.Module, source: Source, x: Tensor) -> None:
    """Show the network one image, (1, C, H, W). Raises ConfigError if what it says is not one row of logits, one a
    class, that can be differentiated where PGD is to be run.
    """
    fix = "name the data set that it is for, or its options as model.key=value"
    logits = first_logits(made, target(cfg), x, f"the images of {source.name}", fix)
    if logits.shape[1] != len(source.classes):
        why = f"gives {logits.shape[1]} logits, and {source.name} has {len(source.classes)} classes"
        raise ConfigError("model", target(cfg), why, fix)
    if cfg.eval.steps and not logits.requires_grad:
        why = "gives logits without a gradient, and PGD needs one"
        raise ConfigError("model", target(cfg), why, "leave PGD out: eval.steps=[]")


def first_logits(network: nn.Module, name: str, x: Tensor, what: str, fix: str) -> Tensor:
    """Logits (1, K) of one image, (1, C, H, W), differentiable if the network is. Raises ConfigError, which says `what`
    the image is and how to `fix` it, where the network called `name` does not take it or answers with anything else.
    """
    eval_model = EvalModel(network, 1)
    x = x.to(eval_model.device, eval_model.dtype).requires_grad_()
    try:
        with eval_model.ready():
            logits = eval_model.answer(x)
    except (RuntimeError, ValueError, AssertionError) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0]
        size = "×".join(str(side) for side in x.shape[1:])
        raise ConfigError("model", name, f"cannot take {what}, {size} ({said})", fix) from fault
    rows = "return the logits alone, (images, classes)"
    if not isinstance(logits, Tensor):
        raise ConfigError("model", name, f"returns a {type(logits).__name__}", rows)
    if logits.ndim != 2 or len(logits) != 1:
        raise ConfigError("model", name, f"answers one image with a tensor of {tuple(logits.shape)}", rows)
    return logits


def facts(cfg: DictConfig, made: nn.Module, source: Source, images: int) -> list[tuple[str, str]]:
    """What will run, for the terminal."""
    count = sum(parameter.numel() for parameter in made.parameters())
    shape = "×".join(str(side) for side in source.shape)
    return [
        ("network", f"{target(cfg)}, {count:,} parameters"),
        ("weights", cfg.checkpoint or "its own"),
        ("data", f"{cfg.dataset.about.name}: {images:,} test images; {len(source.classes)} classes of {shape}"),
        ("threat", f"{cfg.attack.norm}, eps {both_forms(cfg.attack.eps)}"),
    ]


def open_folder(cfg: DictConfig, made: nn.Module, source: Source, device: torch.device, processes: int) -> Path:
    """A folder of its own for a new evaluation, with what explains it."""
    folder = fresh(sweep.current() or Path(cfg.runs), f"eval-{cfg.name}")
    about = {
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "device": str(device),
        "world": processes,
    }
    write_text(folder / "as_typed.yaml", OmegaConf.to_yaml({"argv": argv.as_typed()}))
    write_json(folder / "environment.json", environment(cfg, source, about))
    return folder
