"""Recipes and the papers' experiments: each composes, builds its optimizer and schedule, as its source says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig

from atbench import catalog
from atbench.config import build, check
from tests.test_config import resolved

CONF = catalog.conf_dir()
RECIPES = catalog.options("recipe", [CONF])
PAPERS = [name for name in catalog.options("experiment", [CONF]) if name.startswith("paper/")]


def optimizer(cfg: DictConfig) -> torch.optim.Optimizer:
    made = build(cfg.train.optimizer, "train.optimizer")([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.Optimizer)
    return made


def rate(cfg: DictConfig, epoch: int) -> float:
    """The learning rate at the first step of an epoch, from 0."""
    schedule = build(cfg.train.schedule, "train.schedule")
    return float(optimizer(cfg).param_groups[0]["lr"] * schedule(epoch / cfg.train.epochs))


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "mnist"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_every_data_set(recipe: str, dataset: str) -> None:
    cfg = resolved(f"recipe={recipe}", f"dataset={dataset}")
    check(cfg)
    assert all(rate(cfg, epoch) >= 0 for epoch in range(cfg.train.epochs))
    assert max(rate(cfg, epoch) for epoch in range(cfg.train.epochs)) == pytest.approx(cfg.train.optimizer.lr, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "epochs", "batch", "decay", "rates"),
    [
        ("rice", 200, 128, 5e-4, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
        ("trades", 76, 128, 2e-4, {0: 0.1, 73: 0.1, 74: 0.01, 75: 0.01}),
        ("fast", 15, 128, 5e-4, {0: 0.0, 3: 0.08}),
        ("fastat", 100, 128, 5e-4, {0: 0.004, 29: 0.1, 99: 4e-7}),
        ("rn18_c10_default", 100, 128, 5e-4, {0: 0.004, 29: 0.1, 99: 4e-7}),
        (
            "maini",
            50,
            128,
            5e-4,
            {0: 0.1 / 7800, 10: 0.05 * (1 + 1 / 7800), 20: 0.1, 30: 0.0525, 40: 0.005, 45: 0.0025},
        ),
        ("rst", 200, 256, 5e-4, {0: 0.1, 100: 0.05}),
    ],
)
def test_recipes_are_what_their_sources_say(
    recipe: str, epochs: int, batch: int, decay: float, rates: dict[int, float]
) -> None:
    cfg = resolved(f"recipe={recipe}", "dataset=cifar10")
    assert (cfg.train.epochs, cfg.train.batch_size) == (epochs, batch)
    assert optimizer(cfg).param_groups[0]["weight_decay"] == decay
    assert {epoch: rate(cfg, epoch) for epoch in rates} == pytest.approx(rates, rel=1e-6)


def test_a_schedule_by_epoch_follows_the_epochs_that_the_user_sets() -> None:
    cfg = resolved("recipe=fastat", "train.epochs=10")
    assert cfg.train.schedule.epochs == 10 and rate(cfg, 2) == pytest.approx(0.1)


def test_the_default_of_resnet18_is_averaged_and_smoothed() -> None:
    cfg, plain = resolved("recipe=rn18_c10_default"), resolved("recipe=fastat")
    assert cfg.plus.ema.decay == 0.9995 and not plain.plus
    assert cfg.train.label_smoothing == plain.train.label_smoothing == 0.4


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_composes(name: str) -> None:
    file = CONF / "experiment" / f"{name}.yaml"
    chosen = {
        key.split("/")[-1]: value
        for entry in yaml.safe_load(file.read_text())["defaults"]
        for key, value in entry.items()
    }
    cfg = resolved(f"experiment={name}")
    check(cfg)
    assert cfg.model.about.name == chosen["model"] and cfg.recipe.about.name == chosen["recipe"]
    assert f"paper/{cfg.method.about.name}" == name == cfg.experiment.about.name
    optimizer(cfg)
    assert rate(cfg, 0) > 0
    again = resolved(f"experiment={name}", "train.epochs=3", "attack.steps=1", "train.optimizer.lr=0.5")
    assert (again.train.epochs, again.attack.steps, again.train.optimizer.lr) == (3, 1, 0.5), "the command line wins"


def test_every_method_has_the_setting_of_its_paper() -> None:
    methods = {Path(name).name for name in PAPERS}
    assert methods <= set(catalog.options("method", [CONF]))
    assert len(methods) >= 13
