"""What a file says is data: no checkpoint, run folder, experiment or node of Hydra's has code run that it chose."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import torchvision
import yaml

from atbench.cli.main import main
from atbench.config import allow_list, hydra_section, instantiate, registry, schema, untrusted
from atbench.config.instantiate import locate
from atbench.data.digits import digits
from atbench.errors import ConfigError
from atbench.workflows import eval_plan
from tests.support.unpacked import put, saved

UNPACK = {"_target_": "torchvision.datasets.utils._decompress", "from_path": "x.gz", "to_path": "sprung"}
LSUN = {
    "_target_": "torchvision.datasets.LSUN",
    "target_transform": {"_target_": "torchvision.datasets.utils.extract_archive", "_partial_": True},
}
MINE = {"_target_": "trap.Net"}


WAYS = {
    "checkpoint": ["eval", "run/checkpoints/best.pt"],
    "folder": ["eval", "run"],
    "verify": ["eval", "verify=run"],
    "export": ["export", "run"],
    "resume": ["train", "resume=run"],
}
PARTS = {"function": {"dataset__source": UNPACK}, "nested": {"dataset__source": LSUN}, "own": {"model": MINE}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", PARTS)
def test_a_file_has_nothing_run(part: str, way: str, unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(unpacked / "run", **PARTS[part])
    assert main(WAYS[way]) == 2
    said = capsys.readouterr().err
    assert "chooses no code beside atbench's own" in said and len(said.splitlines()) == 1
    assert not (unpacked / "sprung").exists() and "trap" not in sys.modules
    again = {"own": "model._target_=trap.Net", "function": f"dataset.source._target_={UNPACK['_target_']}"}
    if part in again:
        assert f"`atbench {' '.join(WAYS[way])} {again[part]}`" in said, "the line that has the user's own code run"


def test_naming_it_again_admits_no_more_than_the_users_own(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(unpacked / "run", dataset__source=UNPACK)
    assert main(["eval", "run", f"dataset.source._target_={UNPACK['_target_']}"]) == 2
    assert "may not build this here" in capsys.readouterr().err and not (unpacked / "sprung").exists()


def test_what_the_user_named(unpacked: Path) -> None:
    (unpacked / "conf" / "model").mkdir(parents=True)
    (unpacked / "conf" / "model" / "net.yaml").write_text("_target_: trap.Net\n")
    cfg = saved(model={"_target_": "trap.Net", "inner": {"_target_": "trap.Other"}})
    for typed in (
        ["eval", "run"],
        ["eval", "run", "model._target_=trap.Nets"],
        ["eval", "run", "--config-dir", "conf"],
    ):
        with pytest.raises(ConfigError, match="chooses no code"):
            untrusted.refuse_code(cfg, ("model",), typed)
    del cfg["model"]["inner"]
    typed = ["model._target_=trap.Net", "++model={_target_: trap.Net}", "--config-dir=conf"]
    for word in typed:
        untrusted.refuse_code(cfg, ("model",), ["eval", "run", word])
    assert untrusted.only_repeats_targets({"_target_": "trap.Net"}, cfg["model"])
    assert not untrusted.only_repeats_targets(
        {"_target_": "trap.Net", "width": 3}, cfg["model"]
    ) and not untrusted.only_repeats_targets({}, {})


def test_the_network_of_another_run_is_of_its_file_as_well(unpacked: Path) -> None:
    put(unpacked / "run", model=MINE)
    with pytest.raises(ConfigError, match="chooses no code"):
        eval_plan.load_run_network("run", digits(), torch.device("cpu"))
    assert "trap" not in sys.modules


@pytest.mark.parametrize("node", [UNPACK, LSUN], ids=["function", "nested"])
def test_an_experiment_has_nothing_run(node: dict[str, Any], unpacked: Path) -> None:
    folder = unpacked / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\n" + yaml.safe_dump({"dataset": {"source": node}})
    (folder / "theirs.yaml").write_text(text)
    assert main(["train", "--config-dir", "conf", "experiment=theirs", "logger=none"]) == 2
    assert not (unpacked / "sprung").exists()


def test_every_option_is_in_the_table() -> None:
    """And stands at a place: what is written in `conf` can be built, and a run of it can be gone back to."""
    for path in registry.conf_dir().rglob("*.yaml"):
        group = path.relative_to(registry.conf_dir()).parts[0]
        node = yaml.safe_load(path.read_text())
        if group in ("hydra", "train.yaml", "eval.yaml") or not isinstance(node, dict):
            continue
        whole = path.read_text().startswith("# @package _global_")
        prefix = {"recipe": "train", "dataset": "dataset", "model": "model", "attack": "attack", "eval": "eval"}
        parts = node if whole else {f"plus.{path.stem}" if group == "plus" else prefix.get(group, group): node}
        for part, inner in parts.items():
            strange = list(untrusted._unlisted_targets(inner, part))
            assert not strange, f"{path}: {strange}"


def test_what_the_table_names_exists_and_is_of_its_place() -> None:
    for path, where in allow_list.RULES.items():
        for name in where.names:
            assert locate(name, f"{path}._target_")
    known = torchvision.models.list_models(module=torchvision.models)
    assert {name.rpartition(".")[2] for name in allow_list.CLASSIFIERS} <= set(known)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("dataset.source", "torchvision.datasets.utils._decompress"),
        ("dataset.source", "torchvision.datasets.FakeData"),
        ("dataset.source", "atbench.data.npz.read_npz"),
        ("dataset.augment.0", "atbench.data.download.fetch"),
        ("model", "torch.nn.modules.module.torch.load"),
        ("model", "torch.optim.SGD"),
        ("model.block", "atbench.methods.trades.Trades"),
        ("method", "atbench.models.cnn.CNN"),
        ("plus.x", "atbench.training.checkpoint.save"),
        ("train.optimizer", "torch.nn.ReLU"),
        ("train.groups.model.schedule", "atbench.training.weight_perturbation.WeightPerturbation"),
        ("eval.attacks.x", "atbench.data.digits.digits"),
        ("logger", "atbench.reporting.metrics_log.truncate"),
        ("runs", "torch.nn.ReLU"),
    ],
)
def test_a_place_has_classes_of_its_own(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"may not build this here|nothing is built at this place"):
        locate(name, f"{key}._target_")


OWN = """
import io
from torch import nn
from atbench.data.digits import digits

class Net(nn.Module): pass
class Other: pass
def net(): return nn.ReLU()
def other(): return 3
"""


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("model", "Net", None),
        ("model", "net", None),
        ("model", "Other", "is no torch.nn.Module"),
        ("model", "other", "makes a int and no torch.nn.Module"),
        ("model", "io.FileIO", "may not build"),
        ("model", "nn.ReLU", "may not build"),
        ("dataset.source", "digits", "may not build"),
        ("dataset.source", "net", "makes a ReLU and no atbench.data.Source"),
        ("dataset.augment", "other", "makes a int and no collections.abc.Callable"),
        ("train.optimizer", "Net", "is no torch.optim.Optimizer"),
        ("plus.own", "Other", "is no atbench.training.weight_averaging.Average or"),
    ],
)
def test_the_users_own_is_of_the_type_of_its_place(key: str, name: str, said: str | None, own: Path) -> None:
    if said is None:
        assert instantiate.build({"_target_": f"own_code.{name}"}, key)
        return
    with pytest.raises(ConfigError, match=said):
        instantiate.build({"_target_": f"own_code.{name}"}, key)


@pytest.fixture
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, trusted, with a file of the user's."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ATBENCH_TRUSTED", "")
    (here / "own_code.py").write_text(OWN)
    instantiate.trust_folders(here)
    for name in ("own_code", "own_built"):
        sys.modules.pop(name, None)
    return here


@pytest.mark.parametrize(
    "name",
    ["_io.FileIO", "_frozen_importlib.ModuleSpec", "zipimport.zipimporter", "antigravity.webbrowser", "os.popen"],
)
def test_what_comes_with_python_is_nobodys_own(name: str, own: Path) -> None:
    with pytest.raises(ConfigError, match="may not build"):
        instantiate.build({"_target_": name, "file": "made", "mode": "w"}, "model")
    assert not (own / "made").exists() and not (own / "built-in").exists()


def test_only_source_files_are_the_users(own: Path) -> None:
    (own / f"own_built{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    (own / "lib" / "site-packages").mkdir(parents=True)
    (own / "lib" / "site-packages" / "installed_there.py").write_text(OWN)
    for name in ("own_built.Net", "lib.site-packages.installed_there.Net", "__main__.main"):
        with pytest.raises(ConfigError, match="may not build"):
            instantiate.build({"_target_": name}, "model")


def test_no_library_is_taken_from_the_current_folder(own: Path) -> None:
    """A file called as a library that is not installed, or a folder of Hydra's plugins, must not run by itself."""
    assert str(own) not in sys.path
    instantiate.build({"_target_": "own_code.Net"}, "model")
    assert sys.path[-1] == str(own), "behind everything that is installed"


NODES = [
    "+hydra.callbacks.x={_target_: torch.load, f: x}",
    "hydra.callbacks.sweep_folder._target_=torch.load",
    "hydra.callbacks.sweep_folder=${model}",
    "+hydra.launcher.y={_target_: torch.load, f: x}",
    "hydra.launcher._target_=hydra_plugins.theirs.Launcher",
    "+hydra.sweeper.y={z: [{_target_: torch.load}]}",
    "+hydra.job_logging.handlers={x: {class: os.system}}",
    "+hydra.hydra_logging.formatters={x: {class: os.system}}",
    "hydra.job_logging=${model}",
    "+hydra.job.env_set.ATBENCH_TRUSTED=/",
]
FREE = ["hydra.sweep.dir=elsewhere", "+hydra.launcher.partition=gpu", "hydra.sweeper.max_batch_size=3"]


@pytest.mark.parametrize("words", [*([node] for node in NODES), FREE, ["hydra/job_logging=stdout"]], ids=str)
def test_nodes_of_hydras(words: list[str]) -> None:
    schema.register()
    hydra_section.install_loader()
    refused = pytest.raises(ConfigError, match=r"^hydra\.") if words[0] in NODES else nullcontext()
    with hydra.initialize_config_dir(str(registry.conf_dir()), version_base="1.3"), refused:
        hydra.compose("train", words, return_hydra_config=True)


@pytest.mark.parametrize("many", [[], ["-m"]])
def test_a_users_file_hands_hydra_nothing_to_build(many: list[str], stub: Any, here: Path, capsys: Any) -> None:
    (here / "conf" / "experiment").mkdir(parents=True)
    node = "callbacks: {x: {_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [sprung]}}}"
    (here / "conf" / "experiment" / "x.yaml").write_text(f"# @package _global_\nhydra: {{{node}}}\n")
    assert main(["train", *many, "--config-dir", "conf", "experiment=x"]) == 2
    assert "hydra.callbacks.x" in capsys.readouterr().err
    assert stub.configs == [] and not (here / "sprung").exists() and not (here / "runs").exists()
