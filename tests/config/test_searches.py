"""Loggers as a list, a search by W&B's agents and one by Optuna: lines that run as they are written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from atbench.cli.main import main
from atbench.config import registry, validate
from atbench.errors import ConfigError
from tests.support.stub import Stub


@pytest.mark.parametrize(
    ("word", "opened"),
    [
        ("logger=[wandb,tensorboard,csv]", {"project", "tensorboard", "csv"}),
        ("logger=[csv]", {"csv"}),
        ("logger=wandb", {"project"}),
        ("logger=none", set()),
    ],
)
def test_loggers_are_a_list_or_one(word: str, opened: set[str], stub: Stub) -> None:
    assert main(["train", word]) == 0
    assert {key for key in ("project", "tensorboard", "csv") if stub.configs[0].logger.get(key)} == opened


def test_tensorboard_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logger: tensorboard — needs .*'atbench\[tensorboard\]'"):
        validate.validate_config({"device": "cpu", "logger": {"tensorboard": True}})


def test_the_line_of_a_wandb_sweep_runs_as_written(stub: Stub) -> None:
    """The line is made by wandb's own code, as its agent makes it of one choice of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((registry.conf_dir() / "sweeps" / "wandb.yaml").read_text())
    chosen: dict[str, Any] = {
        key: {"value": node["value"] if "value" in node else node.get("values", [node.get("min")])[0]}
        for key, node in sweep["parameters"].items()
    }
    macros = {**create_sweep_command_args({"args": chosen}), "program": [sweep["program"]]}
    words: list[str] = []
    for chunk in create_sweep_command(sweep["command"]):
        words += macros[chunk[2:-1]] if chunk.startswith("${") else [chunk]
    assert words[0] == "atbench" and main(words[1:]) == 0
    cfg = stub.configs[0]
    assert cfg.method.about.name == "trades" and cfg.method.beta == 1.0 and cfg.train.optimizer.lr == 0.01
    assert cfg.logger.project == "atbench" and sweep["metric"] == {"name": "val/pgd", "goal": "maximize"}


LINE = ("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "method.beta=interval(1,10)", "runs=runs")


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="atbench[optuna] is not installed")
@pytest.mark.slow
def test_optuna_maximises_the_score(stub: Stub, here: Path) -> None:
    stub.act = lambda cfg: -abs(cfg.method.beta - 6)
    assert main(list(LINE)) == 0
    betas = [cfg.method.beta for cfg in stub.configs]
    assert len(betas) == 4 == len(set(betas)) and all(1 <= beta <= 10 for beta in betas)
    (record,) = here.glob("runs/sweeps/*/optimization_results.yaml")
    best = yaml.safe_load(record.read_text())
    assert best["best_value"] == pytest.approx(max(-abs(beta - 6) for beta in betas))


def test_optuna_that_is_missing_is_refused(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atbench.config import hydra_section

    real = importlib.util.find_spec
    monkeypatch.setattr(
        hydra_section.importlib.util, "find_spec", lambda name, *rest: None if "optuna" in name else real(name, *rest)
    )
    assert main(list(LINE)) == 2 and not stub.configs
    assert "hydra/sweeper: optuna — needs the package hydra-optuna-sweeper; install" in capsys.readouterr().err
