"""From a resolved configuration to the objects of a training: data, model, attack, method, groups, trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from atbench.config import values
from atbench.config.instantiate import accepted_kwargs, build, build_errors
from atbench.data import Augment, Chain, Images, Mix, Shard, Source, TrainData
from atbench.data.extra_data import load_extra_data
from atbench.data.overlap import count_shared
from atbench.data.rotations import with_labels
from atbench.errors import AtbenchError, ConfigError, refuse_unknown
from atbench.evaluation.attack_limits import step_warnings
from atbench.methods import Method, Stage
from atbench.methods.risk import MarginRisk
from atbench.models import Ensemble, Hypersphere, Network, weight_files
from atbench.models.memory_format import use_channels_last
from atbench.runs.seeding import derive_seed
from atbench.training import Callbacks, CollapseWatch, Group, Guard, Recipe, Trainer, World, make_group
from atbench.training.callbacks import Interrupt
from atbench.workflows.acceleration import accelerate
from atbench.workflows.layout import wants_channels_last
from atbench.workflows.model_kwargs import model_kwargs
from atbench.workflows.pgd_configs import make_pgd_config, selection_attacks
from atbench.workflows.stages import stage_config


def make_source(cfg: DictConfig, **further: Any) -> Source:
    """The data set that `dataset.source` names, given `data_dir` and what is `further`, each if it asks for it, with
    the labels of `dataset.labels` (`classes` where there is no such key).
    """
    node = cfg.dataset.source
    given = accepted_kwargs(node, "dataset.source", {"data_dir": Path(cfg.data_dir), **further})
    return with_labels(build(node, "dataset.source", **given), labels_of(cfg))


def labels_of(cfg: DictConfig) -> str:
    return str(cfg.dataset.get("labels", "classes"))


def shared_source(cfg: DictConfig, world: World) -> Source:
    """The data set, on every process. One of them makes it first, and so alone fetches what is not on the disk; if it
    cannot, all raise what it raised.
    """
    source, refusal = None, None
    if world.main:
        try:
            source = make_source(cfg)
        except AtbenchError as error:
            refusal = error
    if refusal := world.share_object(refusal):
        raise refusal
    return source or make_source(cfg)


def make_data(cfg: DictConfig, source: Source, world: World) -> TrainData:
    """What this run may train on, on this process's device."""
    augment, mix = make_augment(cfg)
    return TrainData(
        source,
        cfg.train.batch_size,
        cfg.seed,
        augment=augment,
        mix=mix,
        labelled=cfg.train.extra_data.labelled,
        pool=make_pool(cfg, source),
        extra=cfg.train.extra_data.fraction,
        shard=Shard(world.rank, world.size),
        device=world.device,
        dtype=torch.get_default_dtype(),
    )


def make_pool(cfg: DictConfig, source: Source) -> Images | None:
    """The further images of `train.extra_data.path`, with labels if `train.extra_data.labels` says so."""
    pool = cfg.train.extra_data
    if pool.path is None:
        if pool.labels:
            why = "there are no further images"
            raise ConfigError("train.extra_data.labels", True, why, "set train.extra_data.path")
        return None
    return load_extra_data(Path(cfg.data_dir), pool.path, source.shape, len(source.classes) if pool.labels else None)


def make_augment(cfg: DictConfig) -> tuple[Augment | None, Mix | None]:
    """What `dataset.augment`, a node or a list of them, does to single images, and what mixes two; neither if
    `train.augment` is off.
    """
    node = cfg.dataset.get("augment") if cfg.train.augment else None
    if node is None:
        return None, None
    if isinstance(node, ListConfig):
        built = [build(each, f"dataset.augment.{place}") for place, each in enumerate(node)]
    else:
        built = [build(node, "dataset.augment")]
    single, mixes = [each for each in built if not isinstance(each, Mix)], [b for b in built if isinstance(b, Mix)]
    if len(mixes) > 1:
        why = "an example is mixed once"
        raise ConfigError("dataset.augment", " and ".join(type(mix).__name__ for mix in mixes), why, "leave one out")
    augment = single[0] if len(single) == 1 else Chain(single) if single else None
    return augment, mixes[0] if mixes else None


def make_model(cfg: DictConfig, source: Source) -> nn.Module:
    """The network of `model`, or an ensemble of `model.members` of them; initial weights are a function of the seed.

    A network is given what it names in its signature of `shape`, `classes`, `mean` and `std`.
    """
    given = model_kwargs(cfg.model, source)
    torch.manual_seed(derive_seed(cfg.seed, "init"))
    members = [build(cfg.model, "model", **given) for _ in range(cfg.model.get("members", 1))]
    return members[0] if len(members) == 1 else Ensemble(members)


def network_maker(cfg: DictConfig, source: Source) -> Callable[..., nn.Module]:
    """What a method that names `network` is given: `network(changes)` makes a further, untrained network, the run's
    `model` node with these changes, or the changes alone if they name a `_target_`.
    """

    def network(changes: Mapping[str, Any], offset: int = 1) -> nn.Module:
        node = changes if "_target_" in changes else {**cfg.model, "members": 1, **changes}
        return make_model(OmegaConf.create({"seed": cfg.seed + offset, "model": dict(node)}), source)

    return network


def stage_network(cfg: DictConfig, stage: Stage, source: Source, world: World, any_classes: bool = False) -> nn.Module:
    """The network that a stage will hand over, untrained, for a method to hold and fill in `load_pretrained`. Raises
    ConfigError where it is for other images or, unless `any_classes`, other classes than the run's.
    """
    own = stage_config(cfg, stage)
    data = stage_source(cfg, own, source, world)
    if data.shape != source.shape or (len(data.classes) != len(source.classes) and not any_classes):
        ours, theirs = (f"{len(each.classes)} classes of {each.shape}" for each in (source, data))
        why = f"its network is for {theirs}, and {source.name} has {ours}"
        raise ConfigError("stage", stage.checkpoint or " ".join(stage.overrides), why, "use another")
    return stage.handed_over(make_model(own, data))


def stage_source(cfg: DictConfig, own: DictConfig, source: Source, world: World) -> Source:
    """The data set of a stage, whose configuration is `own`: the run's, unless it has another or other labels."""
    if own.dataset.source != cfg.dataset.source:
        return shared_source(own, world)
    if labels_of(own) == labels_of(cfg):
        return source
    return with_labels(source, labels_of(own)) if labels_of(cfg) == "classes" else shared_source(own, world)


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Put published weights, or those of a checkpoint of ours, in the place of the initial ones. Raises DataError."""
    if not isinstance(model, Network):
        raise ConfigError("weights", path, "only a single network with stages can start from a file", "leave it out")
    weight_files.load_weights(model, weight_files.read_weights(path, "weights"))


def make_method(cfg: DictConfig, model: nn.Module, data: TrainData, world: World) -> Method:
    """The method, with its tables allocated, on this process's device."""
    further = {
        "network": network_maker(cfg, data.source),
        "stage_network": lambda stage, **options: stage_network(cfg, stage, data.source, world, **options),
    }
    given = accepted_kwargs(cfg.method, "method", further)
    method: Method = build(cfg.method, "method", model=model, attack=build(cfg.attack, "attack"), **given)
    if data.mix is not None and method.requires_hard_labels:
        mix, name = type(data.mix).__name__, type(method).__name__
        raise ConfigError("dataset.augment", mix, f"{name} needs the one class of each image", f"leave {mix} out")
    if cfg.train.margin:
        method.risk = MarginRisk(margin_of_logits(float(cfg.train.margin), model))
    method.risk.label_smoothing = float(cfg.train.label_smoothing)
    method.attack_risk.label_smoothing = float(cfg.train.attack_label_smoothing)
    method.to(world.device)
    method.clock.epochs, method.clock.steps, method.clock.seed = cfg.train.epochs, data.steps, cfg.seed
    method.clock.rank, method.clock.world = world.rank, world.size
    torch.manual_seed(derive_seed(cfg.seed, "setup"))  # networks of the method's own start from the seed as well
    method.setup(data)
    return method.to(world.device)


def margin_of_logits(margin: float, model: nn.Module) -> float:
    """A margin of cosines, `train.margin`, in units of the logits: times the scale of the network's heads."""
    scales = {head.scale for head in model.modules() if isinstance(head, Hypersphere)}
    if len(scales) != 1:
        why = "is a margin of cosines, and the network has none for logits"
        raise ConfigError("train.margin", margin, why, "add model.head=hypersphere, or leave it out")
    return margin * scales.pop()


def training_warnings(method: Method, data: TrainData, test: Images) -> list[str]:
    """What is to be said of an assembled run before it begins: searches of the method whose steps are too few, too
    short or too long for the ball; images to train on that are test images.
    """
    said = [each for name, steps in method.fixed_steps().items() for each in step_warnings(name, *steps)]
    parts = {"the train split": data.train, "the unlabelled pool": data.pool, "the held-out part": data.validation}
    for name, images in parts.items():
        if images is not None and (count := count_shared(images, test)):
            said.append(f"data: {count} of {len(test)} test images are in {name} as well: robust accuracy flatters")
    return said


def make_groups(cfg: DictConfig, method: Method) -> list[Group]:
    """An optimizer and a schedule for every group of the method; `train.groups.<name>` replaces the common ones."""
    groups = []
    modules = method.groups()
    unknown = set(cfg.train.groups) - set(modules)
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError("train.groups", name, "the method trains no such group", f"it has {', '.join(modules)}")
    for name, module in modules.items():
        own = cfg.train.groups.get(name, {})
        optimizer = own.get("optimizer", cfg.train.optimizer)
        schedule = own.get("schedule", cfg.train.schedule)
        where = f"train.groups.{name}" if own else "train"
        make, at = build(optimizer, f"{where}.optimizer"), build(schedule, f"{where}.schedule")
        with build_errors(optimizer, f"{where}.optimizer"):
            groups.append(make_group(name, module, make, at, cfg.train.weight_decay_on))
    return groups


def make_recipe(cfg: DictConfig, channels_last: bool) -> Recipe:
    train = cfg.train
    refuse_unknown("train.selection.networks", train.selection.networks, ("average", "both"))
    return Recipe(
        epochs=train.epochs,
        seed=cfg.seed,
        precision=(train.precision["attack"], train.precision["update"]),
        tf32=train.precision.tf32,
        channels_last=channels_last,
        clip_norm=train.clip_norm,
        micro_batch=train.micro_batch,
        select_steps=train.selection.steps,
        select_n=train.selection.n,
        select_every=train.selection.every,
        select_both=train.selection.networks == "both",
        save_minutes=float(train.checkpoint.minutes),
        save_steps=train.checkpoint.steps,
        save_every=train.checkpoint.every,
        time_limit=train.time_limit,
    )


def make_trainer(
    cfg: DictConfig, method: Method, data: TrainData, world: World, callbacks: Callbacks, interrupt: Interrupt
) -> Trainer:
    """The trainer of an assembled method. What `plus` only tells about, such as label smoothing, is a setting elsewhere
    and no object.
    """
    plus = [build(node, f"plus.{name}") for name, node in (cfg.plus or {}).items() if set(node) != {"about"}]
    required = cfg.train.channels_last is True
    channels_last = wants_channels_last(cfg) and use_channels_last(method, method.model, data.source.shape, required)
    accelerate(method, world.device, cfg.train.capture, cfg.train.compile)
    groups, recipe = make_groups(cfg, method), make_recipe(cfg, channels_last)  # optimizers of weights in that layout
    threat, *others = selection_attacks(cfg)
    watch = make_watch(cfg, method, data, world)
    return Trainer(method, data, groups, recipe, threat, world, callbacks, plus, interrupt, others, watch)


def make_watch(cfg: DictConfig, method: Method, data: TrainData, world: World) -> CollapseWatch | None:
    """The watch of `guard` for catastrophic overfitting, where training takes single steps."""
    if cfg.guard.collapse is None or not method.single_step():
        return None
    guard = Guard(**values.plain(cfg.guard))
    return CollapseWatch(data, make_pgd_config(cfg, guard.steps), guard, world)


def describe_run(cfg: DictConfig, source: Source, trainer: Trainer) -> dict[str, Any]:
    """Facts about the assembled run that the configuration does not hold."""
    data, world = trainer.data, trainer.world
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.method.model.parameters()),
        "forward_cost": trainer.method.forward_cost(trainer.method.attack.steps),
        "train": len(data.train) - data.generated,
        "generated": data.generated,
        "pool": len(data.pool) if data.pool is not None else 0,
        "validation": len(data.validation),
        "classes": len(source.classes),
        "shape": list(source.shape),
        "steps": data.steps,
        "device": str(world.device),
        "channels_last": trainer.recipe.channels_last,
        "world": world.size,
    }
