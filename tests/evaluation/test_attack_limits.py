"""Warnings about a network that guesses and about radii that are far from usual."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from atbench.config.validate import _warnings
from atbench.errors import ConfigError
from atbench.evaluation.attack_limits import chance_warning
from atbench.workflows.external_model import refuse_radius
from atbench.workflows.pgd_configs import make_pgd_config


@pytest.mark.parametrize(("accuracy", "n", "warned"), [(0.1, 400, 1), (0.02, 400, 1), (0.2, 400, 0), (0.1, 5, 0)])
def test_accuracy_near_chance_is_a_hint(accuracy: float, n: int, warned: int) -> None:
    assert len(list(chance_warning(accuracy, n, 10))) == warned


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [("l2", 8 / 255, "tiny for l2"), ("l2", 9.0, "huge for l2"), ("l2", 0.5, ""), ("linf", 8 / 255, "")],
)
def test_a_radius_of_another_norm_is_warned_about_without_a_training_attack(norm: str, eps: float, words: str) -> None:
    threat = {"linf": {"eps": 8 / 255}, "l2": {"eps": 0.5}}
    cfg = {"attack": {"norm": norm, "eps": eps}, "dataset": {"threat": threat}}
    said = [line for line in _warnings(cfg) if "is usual" in line]
    assert len(said) == bool(words) and all(words in line for line in said)


@pytest.mark.parametrize("eps", ["8/255px", float("nan"), True])
def test_a_radius_that_is_no_number_is_blamed_by_its_own_key(eps: object) -> None:
    threat = {"linf": {"eps": 0.1, "step_size": 0.02}}
    cfg = OmegaConf.create({"seed": 0, "attack": {"norm": "linf", "eps": 0.1}, "dataset": {"threat": threat}})
    with pytest.raises(ConfigError, match=r"eval\.eps: .* is not a finite number"):
        make_pgd_config(cfg, 1, norm="linf", eps=eps)  # type: ignore[arg-type]


def test_an_attack_of_an_evaluation_has_no_radius_of_its_own() -> None:
    refuse_radius(["eval", "RUN", "attack=fgsm", "eval.eps=0.1"])
    for key in ("attack.eps", "attack.norm"):
        with pytest.raises(ConfigError, match=f"{key}: .*write eval"):
            refuse_radius(["eval", "RUN", "attack=fgsm", f"{key}=0.1"])
