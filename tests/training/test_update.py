"""Precision, clipping and refusals of the update."""

from __future__ import annotations

import pytest
import torch

from atbench.data import Batch
from atbench.errors import ConfigError, NumericalError
from atbench.methods.standard import Standard
from tests.support.contract import ALONE, Log, trainer_of


@pytest.mark.parametrize("where", ["attack", "update"])
def test_bf16_is_close_to_fp32_and_not_equal(where: str) -> None:
    losses, weights = [], []
    for precision in ("fp32", "bf16"):
        log = Log()
        trainer = trainer_of("pgd_at", ALONE, log, f"train.precision.{where}={precision}")
        trainer.fit()
        losses.append([row["train"]["loss"] for row in log.rows])
        weights.append(trainer.method.model.head.weight.detach().clone())
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    assert weights[1].dtype == torch.float32, "parameters stay fp32"


def test_a_method_that_differentiates_a_gradient_refuses_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atbench.methods.pgd_at.PgdAt.second_order", True)
    with pytest.raises(ConfigError, match=r"train\.precision\.update"):
        trainer_of("pgd_at", ALONE, Log(), "train.precision.update=bf16")


def test_clipping_bounds_the_first_step() -> None:
    trainer = trainer_of("standard", ALONE, Log(), "train.clip_norm=1e-3", "train.optimizer.weight_decay=0")
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.method.parameters()])
    trainer.train_batch()
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.method.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3 * trainer.groups[0].rate, rel=1e-2)


def test_a_loss_that_is_no_number_names_its_step_and_saves_nothing() -> None:
    log = Log()
    trainer = trainer_of("standard", ALONE, log)
    trainer.train_batch()
    trainer.method.clock.step = 1
    with torch.no_grad():
        trainer.method.model.head.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="epoch 1, step 2"):
        trainer.train_batch()
    assert not log.saved


@pytest.mark.parametrize(
    ("words", "said"), [(("plus=[ema,swa]",), "ema and swa"), (("method=cfa", "plus=swa"), "fawa and swa")]
)
def test_two_averages_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trainer_of("standard", ALONE, Log(), *words)


def test_a_method_knows_the_rates_of_its_groups() -> None:
    trainer = trainer_of("adt_exp_am", ALONE, Log())
    trainer.train_batch()
    assert trainer.method.clock.rates == {group.name: group.rate for group in trainer.groups}
    assert set(trainer.method.clock.rates) == {"model", "generator"}


def test_an_average_sees_what_a_commit_made_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def halve(method: Standard, batch: Batch) -> None:
        with torch.no_grad():
            method.model.head.weight.mul_(0.5)

    monkeypatch.setattr(Standard, "after_update", halve)
    trainer = trainer_of("standard", ALONE, Log(), "plus=[ema]", "plus.ema.warmup=0.99")
    trainer.train_batch()
    assert torch.equal(trainer.averages[0].values["head.weight"], trainer.method.model.head.weight)
