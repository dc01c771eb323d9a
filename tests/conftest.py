"""What every test shares: one thread, no W&B, figures that are not rendered, and a command line that trains nothing."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import omegaconf._utils
import pytest
import torch
import yaml

from scripts import repro, table_runs
from tests.support.figures import rendered, unrendered
from tests.support.repro_program import Program
from tests.support.stub import Stub

pytest_plugins = ["tests.support.tiers", "pytester"]
os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)  # the workers of xdist share the cores
# Configurations are composed a thousand times: OmegaConf's loader, once, on the parser in C where there is one.
with patch.object(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    _LOADER = omegaconf._utils.get_yaml_loader()
omegaconf._utils.get_yaml_loader = lambda: _LOADER


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[None]:
    """Figures are not rendered, unless a test asks for `drawn`."""
    with unrendered():
        yield


@pytest.fixture
def drawn() -> Iterator[None]:
    """Figures are rendered."""
    with rendered():
        yield


@pytest.fixture
def double() -> Iterator[None]:
    """Tensors and networks are float64 unless they say otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "HYDRA_FULL_ERROR", "COMP_LINE", "ATBENCH_TRUSTED", "ATBENCH_ARGV"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def stub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """An empty current folder, and a program whose runs are recorded instead of run."""
    recorded = Stub()
    for verb in ("train", "evaluate"):
        module = ModuleType(f"atbench.workflows.{verb}")
        setattr(module, verb, lambda cfg, verb=verb: recorded.record(verb, cfg))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return recorded


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """What the scripts of tables start in place of `atbench`."""
    stand_in = Program()
    monkeypatch.setattr(table_runs.subprocess, "run", stand_in)
    monkeypatch.setattr(repro, "config_sha256", lambda words: f"{abs(hash(words)):064x}"[-64:])
    return stand_in


@pytest.fixture
def unpacked(here: Path) -> Path:
    """A folder as somebody unpacked it: a module that is a trap, something to unpack, and a run's folder."""
    (here / "trap.py").write_text(
        "from pathlib import Path\nPath('sprung').touch()\nfrom torch import nn\nclass Net(nn.Linear): pass\n"
    )
    (here / "x.gz").write_bytes(gzip.compress(b"sprung"))
    for folder in ("checkpoints", "evaluation"):
        (here / "run" / folder).mkdir(parents=True)
    sys.modules.pop("trap", None)
    return here
