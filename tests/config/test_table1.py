"""The survey's Table 1: its 34 rows as printed, and what each composes in the three tiers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from atbench.config import registry
from atbench.config.schema import fraction
from atbench.config.validate import validate_config
from tests.support.configs import resolved

CONF = registry.conf_dir()
FILES = {path.stem: path for path in sorted((CONF / "experiment" / "table1").glob("*.yaml"))}
PRINTED = list(csv.DictReader((Path(__file__).parent / "table1.csv").read_text(encoding="utf-8").splitlines()))
#: Rows whose method is another option here: UAT++ of UAT, ADT-EXP-AM of ADT.
OPTION = {"uat": "uat_pp", "adt": "adt_exp_am"}
#: Rows by method; the survey does not say which of three regularizers SAT-R is.
ROWS = {{"sat_r": "sat_r2"}.get(row, row): row for row in FILES}
TIERS = ("smoke", "short", "paper")
VERDICTS = {"OK", "MODEL", "EPS", "DATASET", "ATTACK", "NUMBER", "BB", "TGT", "TRAIN_EPS"}
#: The paper tier of these rows trains something else than the method's own paper experiment, and why.
CORRECTED = {
    "llr": "ImageNet",
    "iaat": "ImageNet",
    "fast_at": "ImageNet",
    "grad_align": "ImageNet",
    "avmixup": "Tiny ImageNet",
    "adp": "CIFAR-100",
    "adt_exp_am": "CIFAR-100",
    "feature_scatter": "CIFAR-100",
    "dynamic_at": "8-Layer ConvNet",
    "gal": "four members",
    "fat": "radius of training",
    "bat": "radius of training",
    "he": "TRADES",
}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "imagenet": "ImageNet"}
DATASETS |= {"tiny_imagenet": "Tiny ImageNet"}


def read(row: str) -> DictConfig:
    """A row's own file, unresolved."""
    return OmegaConf.create(yaml.safe_load(FILES[row].read_text(encoding="utf-8")))


def tier(row: str, name: str) -> DictConfig:
    return resolved(f"experiment=table1/{row}", f"tier={name}")


def test_there_is_a_row_for_each_of_the_survey_s() -> None:
    assert len(PRINTED) == 34
    assert {OPTION.get(cell["key"], cell["key"]) for cell in PRINTED} == set(FILES)
    methods = registry.options("method", [CONF])
    assert set(ROWS) <= set(methods) and [read(row).experiment.about.name for row in FILES] == [
        f"table1/{row}" for row in FILES
    ]


@pytest.mark.parametrize("cell", PRINTED, ids=lambda cell: cell["key"])
def test_a_row_is_the_survey_s_as_printed(cell: dict[str, str]) -> None:
    row = OPTION.get(cell["key"], cell["key"])
    survey = read(row).experiment.survey
    assert survey.row == int(cell["n"]) and survey.accuracy == float(cell["acc"])
    assert fraction(survey.eps) == pytest.approx(fraction(cell["eps"]))
    assert (survey.model, survey.attack, survey.dataset) == (cell["model"], cell["attack"], cell["dataset"])
    assert survey.verdict == cell["verdict"] and set(survey.verdict.split("+")) <= VERDICTS
    assert survey.corrected.strip() == survey.corrected and "\n" not in survey.corrected


def test_peers_figures_are_those_of_the_audit() -> None:
    """RobustBench's unless `of` names somebody else; for methods without one there is none."""
    found = {row: read(row).experiment.survey.peer for row in FILES}
    figures = {row: peer.accuracy for row, peer in found.items() if peer is not None}
    assert figures == {
        "rst": 59.53, "uat_pp": 56.03, "he": 53.74, "fat": 53.51, "trades": 53.08, "llr": 52.84, "mart": 47.51,
        "tla": 47.41, "yopo": 44.83, "pgd_at": 44.04, "grad_align": 43.93, "fast_at": 43.21, "free_at": 41.47,
        "mma": 41.44, "feature_scatter": 36.64, "ait": 36.45, "bat": 29.35, "cat_customized": 26.2,
    }  # fmt: skip
    assert {row for row, peer in found.items() if peer and peer.attack != "AutoAttack"} == {"cat_customized"}
    assert {row for row, peer in found.items() if peer and "RobustBench" not in peer.of} == {"mart", "cat_customized"}


@pytest.mark.parametrize("method", sorted(ROWS))
@pytest.mark.every_method("method")
def test_a_row_composes_in_every_tier(method: str) -> None:
    row = ROWS[method]
    for name in TIERS:
        cfg = tier(row, name)
        validate_config(cfg)
        assert cfg.method.about.name == method and cfg.experiment.about.name == f"table1/{row}"
        assert cfg.experiment.survey.row == read(row).experiment.survey.row
        assert (cfg.model.about.name == "strided") is (name == "smoke")
    assert resolved(f"experiment=table1/{row}") == tier(row, "smoke"), "the smoke tier is the default"


@pytest.mark.parametrize("method", sorted(ROWS))
@pytest.mark.every_method("method")
def test_the_smoke_tier_is_the_cpu_s(method: str) -> None:
    cfg, cpu = tier(ROWS[method], "smoke"), resolved("experiment=cpu", f"method={method}")
    assert cfg.dataset.about.name == "mnist14" and cfg.train.epochs <= 15 and cfg.threads == 1
    assert cfg.train == cpu.train and cfg.dataset == cpu.dataset
    changed = {"he": ["method", "model", "attack"], "gal": ["model"], "fat": ["attack"], "bat": ["attack"]}
    assert [key for key in ("method", "model", "attack") if cfg[key] != cpu[key]] == changed.get(method, [])
    assert (cfg.eval.eps or cfg.attack.eps) == pytest.approx(0.2)


@pytest.mark.parametrize("method", sorted(ROWS))
@pytest.mark.every_method("method")
def test_the_paper_tier_is_the_paper_s_experiment(method: str) -> None:
    row = ROWS[method]
    cfg, paper = tier(row, "paper"), resolved(f"experiment=paper/{method}")
    parts = ("dataset", "model", "attack", "method", "train", "plus", "guard")
    changed = [part for part in parts if cfg[part] != paper[part]]
    assert bool(changed) is (row in CORRECTED), changed
    printed = read(row).experiment.survey
    if "DATASET" not in printed.verdict:
        assert DATASETS[cfg.dataset.about.name] == printed.dataset


@pytest.mark.parametrize("method", sorted(ROWS))
@pytest.mark.every_method("method")
def test_the_short_tier_is_short(method: str) -> None:
    cfg = tier(ROWS[method], "short")
    assert cfg.dataset.about.name in ("cifar10", "cifar100", "mnist") and cfg.train.epochs <= 30
    linf = {"mnist": 0.3}.get(cfg.dataset.about.name, 4 / 255 if method == "atda" else 8 / 255)
    assert (cfg.eval.eps or cfg.attack.eps) == pytest.approx(linf)
    assert (cfg.eval.steps, cfg.eval.eps_grid, cfg.eval.audit) == ([1, 20], [0, 1], 0)


@pytest.mark.slow
def test_rows_have_networks_and_radii_of_their_own() -> None:
    found = {
        row: tier(row, "short").model.about.name for row in ("dverge", "gal", "dynamic_at", "atda", "sads", "mart")
    }
    assert found == {
        "dverge": "resnet20",
        "gal": "resnet20",
        "dynamic_at": "convnet8",
        "atda": "convnet9",
        "sads": "lenet_madry",
        "mart": "preactresnet18",
    }
    assert tier("gal", "paper").model.members == tier("gal", "smoke").model.members == 4
    assert tier("dynamic_at", "paper").model.about.name == "convnet8"
    for name, eps in (("smoke", 0.2), ("short", 8 / 255), ("paper", 8 / 255)):
        fat, bat = tier("fat", name), tier("bat", name)
        assert fat.eval.eps == bat.eval.eps == pytest.approx(eps)
        assert (fat.attack.eps, bat.attack.eps) == (pytest.approx(2 * eps), pytest.approx(eps / 2))
    he = tier("he", "paper")
    assert "Trades" in he.method._target_ and he.train.optimizer.weight_decay == 2e-4


def test_a_tier_is_for_any_method_without_a_row() -> None:
    smoke, short = (resolved("method=gairat", f"tier={name}") for name in ("smoke", "short"))
    cpu = resolved("experiment=cpu", "method=gairat")
    assert smoke == cpu and smoke.method.about.name == "gairat"
    assert (short.dataset.about.name, short.model.about.name, short.attack.steps) == ("cifar10", "preactresnet18", 7)
    assert short.train.epochs == 15 and resolved("method=n_fgsm", "tier=short").train.epochs == 30
    assert resolved("method=n_fgsm", "tier=short", "train.epochs=2").train.epochs == 2, "the command line wins"
    plain = resolved()
    assert (plain.experiment.about.name, plain.dataset.about.name) == ("none", "digits")


def test_what_takes_long_on_a_cpu_is_in_one_place() -> None:
    """`experiment=cpu`, the smoke tier and the table of docs/cpu.md train the same."""
    fewer = {"rotation_ss": 7, "dverge": 8, "llr": 11, "adt_exp_am": 11, "iaat": 10}
    for method, epochs in {**fewer, "trades": 15}.items():
        assert tier(method, "smoke").train.epochs == epochs
    assert tier("free_at", "smoke").train.optimizer.lr == 0.05
    assert tier("adt_exp_am", "smoke").method.generator_width == 16
