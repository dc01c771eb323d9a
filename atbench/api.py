"""The Python interface: attack a model, measure its robust accuracy, train, load (docs/python.md).

Attacks and measures are those of `atbench eval`: the same numbers for the same model, images, attack and seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from atbench.attacks.norms.lp_ball import BALLS
from atbench.cli import main as cli
from atbench.config import argv, registry, validate, values
from atbench.config.compose import compose
from atbench.config.overrides import parse_words
from atbench.config.schema import fraction
from atbench.data import FloatImages
from atbench.errors import ConfigError, hint
from atbench.evaluation import EvalModel, EvalResults, Plan, ResultCache, evaluate_model
from atbench.evaluation.attack_limits import evaluation_warnings
from atbench.evaluation.attack_runner import AttackRunner
from atbench.interval import accuracy_figures
from atbench.reporting.wording import both_forms, interval, percent
from atbench.training.distributed import choose_device
from atbench.workflows import eval_plan
from atbench.workflows.external_model import first_logits

#: Names of the field for presets of `atbench eval`.
ALIASES = {"autoattack": "auto"}


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """Share of examples classified right without an attack and under each attack; `float(result)` is the accuracy.

    low, high: Wilson's 95 % interval for n examples. clean: accuracy without an attack. attacks: names of those that
    ran. mask: (n,) booleans on the CPU, which examples are robust; the accuracy is its mean. warnings: what else a
    reader of the figure should know.
    """

    accuracy: float
    low: float
    high: float
    n: int
    clean: float
    norm: str
    eps: float
    attacks: tuple[str, ...]
    mask: Tensor
    warnings: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.accuracy

    def __str__(self) -> str:
        threat = f"{self.norm}, eps {both_forms(self.eps)}, n = {self.n}; {', '.join(self.attacks)}"
        robust = f"{percent(self.accuracy)} {interval(self.low, self.high)}"
        return f"robust accuracy {robust} ({threat}); clean {percent(self.clean)}"


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str = "pgd",
    *,
    norm: str = "linf",
    eps: float,
    batch_size: int = 512,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """x_adv (N, C, H, W) in [0, 1] with ‖x_adv − x‖ ≤ eps, on the device of `x`.

        x_adv = atbench.attack(model, x, y, "pgd", norm="linf", eps=8 / 255, steps=20)

    Images that the model misclassifies without an attack are returned as they are. Of an attack that breaks an example
    the misclassified image is returned, of one that does not the last try; a preset returns the example itself. A
    minimum-norm attack (`fmn`, `cw_l2`, `deepfool`, `fab`) returns what it finds at any distance.

    Args:
        model: takes [0, 1] images, returns logits (N, K); normalises inside. It is attacked in eval mode; modes,
            `requires_grad` and buffers are restored.
        x, y: images, float (N, C, H, W) in [0, 1], and classes, int64 (N,), on any device.
        attack: a name of `list_options("attacks")`, or a preset: `autoattack` or a name of `list_options("evals")`.
        norm, eps: `linf`, `l2` or `l1`, and the radius in units of pixels in [0, 1].
        batch_size: images at once; moves no random number.
        seed: of all random numbers of the attack.
        settings: further options of the attack, such as `steps` or `restarts`; defaults are those of `conf/attack`. A
            `step_size` is absolute, and eps/4 unless given; a `rel_step_size` is a share of eps.

    Returns float32; float64 for a model that is float64 throughout. Raises ConfigError.
    """
    cfg = _config(attack, settings, norm, eps, batch_size, seed)
    with _evaluated(model, x, y, batch_size) as (eval_model, images):
        plan = _plan(cfg, eval_model, images)
        x_adv = images.floats(dtype=eval_model.dtype).clone()
        if not cfg.single:
            _put_broken(evaluate_model(eval_model, images, plan), x_adv)
            return x_adv
        ((name, (search, _)),) = plan.attacks.items()
        right = eval_model.correct(images)
        runner = AttackRunner(eval_model, images, right, ResultCache(None, {}), seed)
        for rows in eval_model.batches(right.nonzero().flatten()):
            with eval_model.ready():
                x_adv[rows.to(x_adv.device)] = runner.perturb(name, search, rows)[2].to(x_adv.device)
        return x_adv


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str = "autoattack",
    *,
    norm: str = "linf",
    eps: float,
    batch_size: int = 512,
    seed: int = 0,
    **settings: Any,
) -> RobustAccuracy:
    """Accuracy of `model` on `x` under an attack, or under the worst of a preset's, with its 95 % interval.

        print(atbench.robust_accuracy(model, x, y, "autoattack", norm="linf", eps=8 / 255))

    No attack is believed: an example is broken if its image is in the ball and in [0, 1] and misclassified. It is an
    upper bound of the robustness of the model. What a preset measures besides (other norms, larger radii, corruptions,
    rejection, the audit) is left out: `atbench eval` has it. Args: those of `attack`.
    """
    cfg = _config(attack, settings, norm, eps, batch_size, seed)
    with _evaluated(model, x, y, batch_size) as (eval_model, images):
        results = evaluate_model(eval_model, images, _plan(cfg, eval_model, images))
    mask, n = torch.from_numpy(results.robust), len(images)
    random = "the model answers one image differently from pass to pass: measure it with 'rand'"
    return RobustAccuracy(
        **accuracy_figures(int(mask.sum()), n),
        n=n,
        clean=float(results.clean.mean()),
        norm=norm,
        eps=results.facts["plan"]["threat"]["eps"],
        attacks=tuple(results.attack_names),
        mask=mask,
        warnings=(*([random] if results.facts["random"] and attack != "rand" else []), *evaluation_warnings(results)),
    )


def train(overrides: Sequence[str] = ()) -> Path:
    """`atbench train` with these words, such as `["method=trades", "train.epochs=5"]`: the folder of the finished run.

    Raises what the command line would print: ConfigError, DataError, ... (`atbench.errors`).
    """
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError("overrides", repr(overrides), "must be a list of words", 'write ["method=trades", "seed=1"]')
    for option in parse_words(overrides).options:
        if option != "--config-dir":
            raise ConfigError("overrides", option, "is of the command line", "train one run, or write `atbench train`")
    (result,) = cli.results(["train", *overrides])
    folder: Path = result.folder
    return folder.absolute()


def load(
    run: str | Path,
    checkpoint: str = "best",
    *,
    device: str = "cpu",
    data_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> nn.Module:
    """The network of a run folder, in eval mode: [0, 1] images in, logits out.

    Args:
        run: folder of a run or of an evaluation, or a checkpoint file.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        data_dir: where its data set lies now, which says shape and classes; default: where it was.
        overrides: for a run with a class of your own, which a folder may not choose: `model._target_=mine.Net`.

    Raises DataError for a folder or checkpoint that is absent or damaged, ConfigError for one that chooses code.
    """
    with cli.restored():
        argv.remember_argv(["load", *overrides], None)
        return eval_plan.load_run_network(str(run), None, choose_device(device), checkpoint, data_dir)


def list_methods() -> list[str]:
    """Names of the methods of adversarial training, for `method=NAME`."""
    return list_options("methods")


def list_options(kind: str) -> list[str]:
    """Names of the options of a kind: methods, attacks, models, datasets, recipes, evals, ... (`atbench list`)."""
    return [str(entry["name"]) for entry in registry.entries(kind, [registry.conf_dir()])]


def _config(attack: str, settings: dict[str, Any], norm: str, eps: float, batch_size: int, seed: int) -> DictConfig:
    """What `atbench eval attack=NAME` or `eval=PRESET` composes, less what is not about robust accuracy; `single`: one
    attack and no preset. Raises ConfigError for a name that is neither, and for a setting that does not fit.
    """
    name, folders, eps = ALIASES.get(attack, attack), [registry.conf_dir()], fraction(eps)
    attacks, presets = (registry.options(group, folders) for group in ("attack", "eval"))
    single = name in attacks
    if norm not in BALLS:
        raise ConfigError("norm", norm, "there is no such norm", hint(norm, BALLS))
    if not single and name not in presets:
        raise ConfigError("attack", attack, "there is no such attack", hint(attack, [*attacks, *presets, *ALIASES]))
    if not single and settings:
        key, value = next(iter(settings.items()))
        raise ConfigError(key, value, f"{attack} is several attacks, each with its settings", "run one: attack='pgd'")
    cfg = compose("eval", [f"attack={name}", "eval.steps=[]", "eval.eps_grid=[]"] if single else [f"eval={name}"])
    with open_dict(cfg):
        cfg.seed, cfg.eval.norm, cfg.eval.eps, cfg.eval.batch_size = seed, norm, eps, batch_size
        cfg.dataset = {"threat": {norm: {"eps": eps, "step_size": eps / 4}}}
        if single:
            threat = {"norm": norm, "eps": eps} if "norm" in cfg.attack else {}
            try:
                cfg.attack.update({**threat, **settings})
            except OmegaConfBaseException as error:
                raise ConfigError(attack, settings, str(error).splitlines()[0], "give numbers and texts") from error
    plain = values.plain(values.resolve(cfg))
    chosen = plain["eval"]
    chosen |= {"norms": [], "corruptions": [], "reject": None, "audit": 0, "limit": None}
    chosen["eps_grid"] = [multiple for multiple in chosen["eps_grid"] if multiple <= 1]
    if single:
        chosen["attacks"] = {name: plain["attack"]}
    plain["attack"] = {"norm": norm, "eps": eps}
    validate.validate_config(plain)
    return OmegaConf.create({**plain, "single": single})


def _plan(cfg: DictConfig, eval_model: EvalModel, images: FloatImages) -> Plan:
    """The attacks of `cfg` on this model. Raises ConfigError where model, labels and attacks do not fit together."""
    name, device = type(eval_model.network).__name__, str(eval_model.device)
    fix = "give it images of the shape that it is for"
    logits = first_logits(eval_model.network, name, images.floats(slice(1)), "x", fix)
    classes, low, high = logits.shape[1], int(images.y.min()), int(images.y.max())
    if low < 0 or high >= classes:
        raise ConfigError("y", low if low < 0 else high, f"{name} gives {classes} logits", f"use 0 to {classes - 1}")

    def other(run: str) -> nn.Module:
        return load(run, device=device).requires_grad_(False)

    plan = eval_plan.make_robust_plan(cfg, name, classes, images, other)
    needs = [key for key, (each, _) in plan.attacks.items() if each.access in ("gradient", "features")]
    if (needs or plan.steps) and not logits.requires_grad:
        why = f"gives logits without a gradient, and {', '.join(needs) or 'pgd'} needs one"
        raise ConfigError("model", name, why, "use square or another attack of queries")
    return plan


def _put_broken(results: EvalResults, x_adv: Tensor) -> None:
    """Put the image of the first attack that broke it in the place of each broken example."""
    for name in reversed(results.main):
        rows, images = (torch.from_numpy(results.examples[f"{name}.{key}"]) for key in ("rows", "x_adv"))
        x_adv[rows.to(x_adv.device)] = images.to(x_adv)


@contextmanager
def _evaluated(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[EvalModel, FloatImages]]:
    """A block that evaluates a model on images: both checked, gradients enabled, the model's buffers restored after it.
    Modes and `requires_grad` are restored by `EvalModel.ready`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError("model", type(model).__name__, "must be a torch.nn.Module", "wrap it in one")
    if next(model.parameters(), None) is None:
        raise ConfigError("model", type(model).__name__, "has no parameters", "register its weights as parameters")
    buffers = [
        (module, key, buffer, buffer.clone())
        for module in model.modules()
        for key, buffer in module.named_buffers(recurse=False)
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield EvalModel(model, batch_size), _images(x, y)
    finally:
        with torch.no_grad():
            for module, key, buffer, value in buffers:
                setattr(module, key, buffer.copy_(value))


def _images(x: Tensor, y: Tensor) -> FloatImages:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or len(x) == 0:
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError("x", what, "must be a float tensor (N, C, H, W)", "divide 8-bit images by 255")
    if not bool(((x >= 0) & (x <= 1)).all()):
        span = f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"
        raise ConfigError("x", span, "must lie in [0, 1]", "normalise inside the model; divide 8-bit images by 255")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError("y", what, f"must be int64 ({len(x)},), one class for each image", "give it as y.long()")
    return FloatImages(x.clone() if x.is_inference() else x.detach(), y.to(x.device))
