"""The CPU tier: what `experiment=cpu` and `experiment=cpu_collapse` compose."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from atbench.config.validate import validate_config
from tests.support.configs import resolved


def search(cfg: DictConfig) -> tuple[int, float, str]:
    return cfg.attack.steps, pytest.approx(cfg.attack.step_size), cfg.attack.start


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("pgd_at", (7, 0.05, "uniform")),
        ("trades", (7, 0.05, "gaussian")),
        ("fgsm_at", (1, 0.2, "zero")),
        ("llr", (10, 0.1, "uniform")),
    ],
)
def test_a_method_s_own_search_wins_over_seven_steps(method: str, expected: tuple[int, float, str]) -> None:
    cfg = resolved("experiment=cpu", f"method={method}")
    assert search(cfg) == expected
    assert cfg.attack.eps == 0.2 and cfg.model.activation == ("softplus" if method == "llr" else "relu")
    validate_config(cfg)


def test_the_tier_is_small_data_a_small_network_and_one_thread() -> None:
    cfg = resolved("experiment=cpu")
    assert (cfg.dataset.about.name, cfg.model.about.name, cfg.attack.about.name) == ("mnist14", "strided", "pgd_7")
    assert (cfg.train.epochs, cfg.train.batch_size, cfg.train.optimizer.lr) == (15, 128, 0.2)
    assert cfg.threads == 1 and cfg.train.selection.n == 500 and cfg.dataset.source.validation == 1000
    assert (list(cfg.eval.steps), list(cfg.eval.eps_grid), cfg.eval.eps_steps, cfg.eval.audit) == (
        [1, 20],
        [0, 1],
        20,
        0,
    )
    assert cfg.eval.attacks.fgsm.steps == 1 and cfg.eval.attacks.fgsm.rel_step_size == 1.0


def test_the_collapse_is_one_step_and_its_cures_are_overrides() -> None:
    cfg = resolved("experiment=cpu_collapse")
    assert cfg.method.about.name == "pgd_at" and cfg.dataset.about.name == "mnist14" and cfg.attack.eps == 0.3
    assert search(cfg) == (1, 0.3, "zero")
    cured = resolved("experiment=cpu_collapse", "attack.start=uniform", "attack.step_size=0.375")
    assert search(cured) == (1, 0.375, "uniform")
    assert search(resolved("experiment=cpu_collapse", "attack=pgd_7")) == (7, 0.075, "uniform")
    assert cfg.train.selection.n == 500 and cfg.experiment.about.name == "cpu_collapse" and cfg.train.epochs == 30


@pytest.mark.parametrize("method", ["fgsm_at", "fast_at", "grad_align", "kim_interval", "n_fgsm", "free_at"])
def test_where_training_collapses_single_step_methods_keep_their_search_and_are_watched(method: str) -> None:
    cfg = resolved("experiment=cpu_collapse", f"method={method}")
    own = {"fgsm_at": 0.3, "grad_align": 0.3, "n_fgsm": 0.3, "fast_at": 0.375, "kim_interval": 0.375}
    if method in own:
        assert cfg.attack.steps == 1 and cfg.attack.step_size == pytest.approx(own[method])
    assert cfg.attack.eps == 0.3 and cfg.attack.bn == "eval" and cfg.guard.collapse == "warn"
