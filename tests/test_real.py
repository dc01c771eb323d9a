"""Real CIFAR-10 and the field's network: a few steps, and what they must show. Skips without the images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atbench.evaluation import EvalModel, broken_at, robust_after
from atbench.training import World
from atbench.workflows import factory
from atbench.workflows.pgd_configs import make_pgd_config
from tests.support.configs import resolved
from tests.support.contract import Log

UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real CIFAR-10 as npz archives."""
    if not UNPACK.is_file():
        pytest.skip("the real images are not beside this checkout (../shared/data)")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, str(UNPACK), "--out", str(folder), "cifar10"], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_a_few_steps_of_pgd_at_on_cifar10(data_dir: Path) -> None:
    """PreActResNet-18 on a single batch again and again: x_adv is legal, the loss under attack falls."""
    words = ["dataset=cifar10", f"data_dir={data_dir}", "model=preactresnet18", "method=pgd_at", "attack.steps=2"]
    cfg = resolved(*words, "train.batch_size=16", "train.epochs=1", "train.optimizer.lr=0.5")
    here = World(torch.device("cpu"))
    source = factory.make_source(cfg)
    assert len(source.train) == 50_000 and len(source.classes) == 10
    data = factory.make_data(cfg, source, here)
    model = factory.make_model(cfg, source)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_172_170
    trainer = factory.make_trainer(cfg, factory.make_method(cfg, model, data, here), data, here, Log(), lambda: 0)
    batch = trainer.method.perturb(data.batch(0, 0))
    assert float((batch.x_adv - batch.x).abs().max()) <= 8 / 255 + 1e-6
    assert float(batch.x_adv.min()) >= 0 and float(batch.x_adv.max()) <= 1
    losses = []
    for _ in range(6):  # the clock stands still: the same batch, so that progress is not chance
        trainer.means.clear()
        trainer.train_batch()
        losses.append(trainer.means.means(here)["loss"])
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_an_untrained_network_is_at_chance_on_the_real_test_split(data_dir: Path) -> None:
    words = ["dataset=cifar10", f"data_dir={data_dir}", "model=cnn", "method=standard"]
    cfg = resolved(*words)
    source = factory.make_source(cfg)
    test = source.test()
    assert len(test) == 10_000 and torch.equal(torch.bincount(test.y), torch.full((10,), 1000))
    few = test.take(torch.arange(256))
    eval_model = EvalModel(factory.make_model(cfg, source), 128)
    clean = eval_model.correct(few)
    broken = broken_at(eval_model, few, make_pgd_config(cfg, 3), clean)
    assert 0.02 < float(clean.double().mean()) < 0.25
    assert robust_after(broken, 3).sum() <= clean.sum()
