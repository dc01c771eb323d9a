"""Recipes and the papers' experiments: each composes, builds its optimizer and schedule, as its source says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig

from atbench.config import registry
from atbench.config.instantiate import build
from atbench.config.validate import validate_config
from atbench.data import PadCropFlip
from atbench.data.digits import digits
from atbench.training import World
from atbench.workflows import factory
from tests.support.configs import PAPERS, resolved
from tests.support.contract import Log

CONF = registry.conf_dir()
RECIPES = registry.options("recipe", [CONF])
#: Papers' settings of a method that are another one than that of its name.
VARIANTS = {"adaiad": "adaad", "oaat_wrn": "oaat"}


def optimizer(cfg: DictConfig) -> torch.optim.Optimizer:
    made = build(cfg.train.optimizer, "train.optimizer")([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.Optimizer)
    return made


def rate(cfg: DictConfig, epoch: int) -> float:
    """The learning rate at the first step of an epoch, from 0."""
    schedule = build(cfg.train.schedule, "train.schedule")
    return float(optimizer(cfg).param_groups[0]["lr"] * schedule(epoch / cfg.train.epochs))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "mnist"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.every_pair("recipe", "dataset")
def test_every_recipe_fits_every_data_set(recipe: str, dataset: str) -> None:
    cfg = resolved(f"recipe={recipe}", f"dataset={dataset}")
    validate_config(cfg)
    assert all(rate(cfg, epoch) >= 0 for epoch in range(cfg.train.epochs))
    assert max(rate(cfg, epoch) for epoch in range(cfg.train.epochs)) == pytest.approx(cfg.train.optimizer.lr, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "epochs", "batch", "decay", "rates"),
    [
        ("rice", 200, 128, 5e-4, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
        ("idbh", 200, 128, 5e-4, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
        ("trades", 76, 128, 2e-4, {0: 0.1, 73: 0.1, 74: 0.01, 75: 0.01}),
        ("fast", 15, 128, 5e-4, {0: 0.0, 3: 0.08}),
        ("fastat", 100, 128, 5e-4, {0: 0.004, 29: 0.1, 99: 4e-7}),
        ("rn18_c10_default", 100, 128, 5e-4, {0: 0.004, 29: 0.1, 99: 4e-7}),
        (
            "maini",
            50,
            128,
            5e-4,
            {0: 0.005, 9: 0.05, 19: 0.1, 29: 0.0525, 39: 0.005, 44: 0.0025, 49: 0.0},
        ),
        (
            "wang2019",
            120,
            128,
            4e-3,
            {0: 0.01, 58: 0.01 / (1 + 2.262), 59: 0.001 / (1 + 2.301), 98: 0.001 / (1 + 3.822), 99: 1e-4 / (1 + 3.861)},
        ),
        ("rst", 200, 256, 5e-4, {0: 0.1, 100: 0.05}),
        ("ssdrl", 109, 128, 0.0, {0: 1e-3, 87: 1e-3, 98.1: 5e-4, 108: 1e-3 * 5 / 109}),
        ("shaham", 120, 100, 1e-3, {0: 0.01, 1: 0.01 / (1 + 600 * 5e-6), 100: 0.01 / (1 + 60_000 * 5e-6)}),
        ("gowal2020", 200, 512, 5e-4, {0: 0.2, 99: 0.2, 100: 0.02, 150: 0.002}),
        ("rebuffi2021", 400, 512, 5e-4, {0: 0.2, 266: 0.2, 267: 0.02, 399: 0.02}),
        ("wang2023", 400, 512, 5e-4, {0: 0.008, 9: 0.2, 399: 8e-7}),
    ],
)
def test_recipes_are_what_their_sources_say(
    recipe: str, epochs: int, batch: int, decay: float, rates: dict[int, float]
) -> None:
    cfg = resolved(f"recipe={recipe}", "dataset=cifar10")
    assert (cfg.train.epochs, cfg.train.batch_size) == (epochs, batch)
    assert optimizer(cfg).param_groups[0]["weight_decay"] == decay
    assert {epoch: rate(cfg, epoch) for epoch in rates} == pytest.approx(rates, rel=1e-6)


#: Whose crops are padded by reflection (np.pad, tf.pad or torchvision's Pad in their code); all others pad with zeros.
REFLECTED = {
    *(f"paper/{name}" for name in ("early_stop", "iaat", "l1_penalty_at", "llr", "mma", "msd", "standard")),
    *(
        f"paper/{name}"
        for name in ("uat_ft", "uat_ot", "uat_pp", "multi_grad", "zero_grad", "cfa", "mlcat", "mlcat_ls", "rebat")
    ),
    *("paper/adp", "paper/dynamic_at"),  # repeated edges, which crops here do not have
}
#: Pixels of padding where they are not 4: crops of 36 x 36 (MadryLab/cifar10_challenge, cifar10_input.py, and what is
#: made from it), and shifts of up to a tenth and a fifth of the image (Keras).
PADS = {
    **{f"paper/{name}": 2 for name in ("avmixup", "free_at", "pgd_at", "tla")},
    **{"paper/adp": 3, "paper/dynamic_at": 6},
}


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.every_method("name")
def test_crops_are_padded_as_their_source_pads_them(name: str) -> None:
    dataset = resolved(f"experiment={name}").dataset
    crops = [part for part in dataset.augment or [] if part["_target_"].endswith("PadCropFlip") and part.pad]
    pad = 16 if dataset.about.name == "imagenet" else PADS.get(name, 4)
    expected = (pad, "reflect" if name in REFLECTED else "constant")
    assert all((part.pad, part.get("padding_mode", "constant")) == expected for part in crops)
    assert crops or name not in REFLECTED | PADS.keys()


@pytest.mark.parametrize("recipe", ["rice", "maini"])
def test_recipes_that_reflect_do_so_where_there_are_crops(recipe: str) -> None:
    augment, _ = factory.make_augment(resolved(f"recipe={recipe}", "dataset=cifar100"))
    assert isinstance(augment, PadCropFlip) and augment.padding_mode == "reflect"
    for dataset in ("digits", "mnist"):
        assert factory.make_augment(resolved(f"recipe={recipe}", f"dataset={dataset}")) == (None, None)


def test_a_schedule_by_epoch_follows_the_epochs_that_the_user_sets() -> None:
    cfg = resolved("recipe=fastat", "train.epochs=10")
    assert cfg.train.schedule.epochs == 10 and rate(cfg, 2) == pytest.approx(0.1)


def test_the_default_of_resnet18_is_averaged_and_smoothed() -> None:
    cfg, plain = resolved("recipe=rn18_c10_default"), resolved("recipe=fastat")
    ema = build(cfg.plus.ema, "plus.ema")
    assert (ema.decay, ema.warmup, ema.ramp, ema.buffers) == (0.9995, 0.0, False, True) and not plain.plus
    assert cfg.train.selection.networks == "both" and cfg.train.schedule == plain.train.schedule
    assert cfg.train.label_smoothing == plain.train.label_smoothing == 0.4


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.every_method("name")
def test_every_paper_composes(name: str) -> None:
    file = CONF / "experiment" / f"{name}.yaml"
    chosen = {
        key.split("/")[-1]: value
        for entry in yaml.safe_load(file.read_text())["defaults"]
        for key, value in entry.items()
    }
    cfg = resolved(f"experiment={name}")
    validate_config(cfg)
    assert cfg.model.about.name == chosen["model"] and cfg.recipe.about.name == chosen["recipe"]
    assert VARIANTS.get(Path(name).name, Path(name).name) in (cfg.method.about.name, cfg.recipe.about.name)
    assert name == cfg.experiment.about.name
    optimizer(cfg)
    assert rate(cfg, 1) > 0  # triangles begin at 0
    again = resolved(f"experiment={name}", "train.epochs=3", "attack.steps=1", "train.optimizer.lr=0.5")
    assert (again.train.epochs, again.attack.steps, again.train.optimizer.lr) == (3, 1, 0.5), "the command line wins"


def test_every_method_has_the_setting_of_its_paper() -> None:
    methods = {Path(name).name for name in PAPERS}
    assert methods <= {*registry.options("method", [CONF]), *RECIPES, *VARIANTS}
    assert len(methods) >= 13


def test_the_recipes_with_averages_spare_what_they_do_not_decay() -> None:
    for name, decay in (("gowal2020", 0.995), ("rebuffi2021", 0.999), ("wang2023", 0.995)):
        cfg = resolved(f"recipe={name}")
        assert (cfg.train.weight_decay_on, cfg.plus.ema.decay, cfg.plus.ema.warmup) == ("weights", decay, 0.025)
        assert cfg.train.optimizer.nesterov


def test_a_recipe_trains_with_generated_images(tmp_path: Path) -> None:
    """A few steps of recipe=wang2023 on digits, the further images made from them; the first batches by hand."""
    whole = digits()
    rows = torch.arange(0, 900, 3)
    image = whole.train.x[rows].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "made.npz", image=255 - image, label=whole.train.y[rows].numpy())
    words = ["recipe=wang2023", "train.batch_size=64", "train.epochs=1", "train.selection.steps=2", "model.width=4"]
    pool = [
        "train.extra_data.path=made.npz",
        "train.extra_data.labels=true",
        "train.extra_data.fraction=0.7",
        f"data_dir={tmp_path}",
    ]
    cfg = resolved("dataset=digits", *words, *pool, "attack.steps=1")
    validate_config(cfg)
    here, log = World(torch.device("cpu")), Log()
    data = factory.make_data(cfg, whole, here)
    assert data.steps == (len(whole.train) - whole.validation) // 64 and data.generated == 300
    assert int((data.batch(0, 0).index >= len(data.train) - 300).sum()) == 44
    method = factory.make_method(cfg, factory.make_model(cfg, whole), data, here)
    trainer = factory.make_trainer(cfg, method, data, here, log, lambda: 0)
    trainer.fit()
    assert log.rows[0]["val"]["n"] == whole.validation and log.rows[0]["train"]["loss"] > 0
    facts = factory.describe_run(cfg, whole, trainer)
    assert (facts["train"], facts["generated"], facts["pool"]) == (len(data.train) - 300, 300, 0)
