"""The FastAT Benchmark: atbench/config/benchmarks.yaml, experiment=fastat/NAME, and the list of its methods."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from atbench.cli.main import main
from atbench.config import registry, values
from atbench.config.validate import validate_config
from tests.support.configs import resolved

METHODS = registry.benchmark("fastat")
#: Whose search climbs the smoothed loss there too, beside LIET, which smooths labels itself.
SMOOTH_SEARCH = {
    *("fgsm_at", "fgsm_rs", "n_fgsm", "ssat", "gat", "nu_at", "fgsm_rs_cs", "fgsm_mep_cs", "fgsm_pco"),
    *("fgsm_uap", "fgsm_cuap", "fgsm_fuap"),
}


def test_its_methods_are_methods_of_ours() -> None:
    """One row each, the most robust first; every name is an experiment."""
    assert len(METHODS) == 21 and next(iter(METHODS)) == "pgd_at_wa"
    known = registry.options("method", [registry.conf_dir()])
    assert {given["method"] for given in METHODS.values()} - {*known} == set()
    experiments = registry.options("experiment", [registry.conf_dir()])
    assert {name for name in experiments if name.startswith("fastat/")} == {f"fastat/{name}" for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_an_experiment_is_the_benchmark_s_setting_with_the_words_of_its_row(name: str) -> None:
    given, cfg = METHODS[name], resolved(f"experiment=fastat/{name}")
    validate_config(cfg)
    recipe = "rn18_c10_default" if given.get("averaged", True) else "fastat"
    words = [f"method={given['method']}", f"recipe={recipe}", *given.get("words", [])]
    by_hand = resolved("experiment=fastat", *words)
    for part in ("method", "model", "dataset", "attack", "recipe", "train", "plus"):
        assert values.plain(cfg)[part] == values.plain(by_hand)[part], part
    assert (cfg.dataset.about.name, cfg.model.about.name, cfg.dataset.source.std) == ("cifar10", "resnet18", [1, 1, 1])
    assert cfg.dataset.source.validation == 1000 and cfg.train.selection.networks == ("both" if cfg.plus else "average")
    assert cfg.train.attack_label_smoothing == (0.4 if name in SMOOTH_SEARCH else 0)
    wanted = [given["checkpoint"]] if "checkpoint" in given else ["best", "last"]
    assert OmegaConf.to_container(cfg.eval.checkpoints) == wanted


def test_any_method_can_be_put_in_its_setting() -> None:
    cfg = resolved("experiment=fastat", "method=trades")
    assert (cfg.method.about.name, cfg.recipe.about.name, cfg.attack.steps) == ("trades", "rn18_c10_default", 10)


def test_the_list_has_its_figures_and_ours_beside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--benchmark", "fastat"]) == 0
    head, first, *_ = lines = capsys.readouterr().out.splitlines()
    assert first.split()[:9] == ["pgd_at_wa", "82.36", "±", "0.32", "50.49", "±", "0.15", "7027", "method=pgd_at"]
    assert head.split()[0] == "name" and len(lines) == 1 + 21 + 2 and "experiment=fastat/NAME" in lines[-1]
    (row,) = [line for line in lines if line.startswith("fgsm_rs ")]
    assert "method=fast_at method.drop=null" in row
    (row,) = [line for line in lines if line.startswith("pgd_at ")]
    assert row.endswith("method=pgd_at recipe=fastat")
    assert main(["list", "methods", "--benchmark", "fastat", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)


@pytest.mark.parametrize("words", [["methods", "--benchmark", "fast"], ["--benchmark", "fastat"]])
def test_what_is_no_benchmark_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_it_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from atbench.cli.main import main; main(['list', 'methods', '--benchmark', 'fastat']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'omegaconf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
