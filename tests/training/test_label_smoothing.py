"""plus=label_smoothing: the closed form in the loss that is minimised, none in the attack, one place for the amount."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.training import Trainer
from tests.support import reference
from tests.support.contract import ALONE, Log, configuration, trainer_of


def first(trainer: Trainer) -> Batch:
    """The perturbed first batch."""
    trainer.method.train()
    return trainer.method.perturb(trainer.data.batch(0, 0))


def smoothed(logits: Tensor, y: Tensor, amount: float) -> float:
    """1 − s + s/K of the label's −log p and s/K of each other one's, in plain Python."""
    rows = [reference.log_softmax(row) for row in logits.double().tolist()]
    share = amount / logits.shape[1]
    return reference.mean([-(1 - amount) * row[k] - share * sum(row) for row, k in zip(rows, y.tolist(), strict=True)])


@pytest.mark.parametrize(("words", "amount"), [((), 0.1), (("train.label_smoothing=0.3",), 0.3)])
def test_the_outer_loss_is_smoothed_and_the_attack_is_not(words: tuple[str, ...], amount: float) -> None:
    plain = trainer_of("pgd_at", ALONE, Log())
    smooth = trainer_of("pgd_at", ALONE, Log(), "plus=label_smoothing", *words)
    batch, hard = first(smooth), first(plain)
    assert torch.equal(batch.x_adv, hard.x_adv)
    logits = smooth.method.model(batch.x_adv)
    assert smooth.method.loss(batch).total.item() == pytest.approx(smoothed(logits, batch.y, amount), abs=1e-6)
    assert plain.method.loss(batch).total.item() == pytest.approx(smoothed(logits, batch.y, 0.0), abs=1e-6)


def test_pang_et_al_s_amount_is_a_ninth_more_of_ours_with_ten_classes() -> None:
    """1 − s' on the label and s'/(K − 1) on each other class, at s' = 0.1, is ours at 1/9."""
    trainer = trainer_of("pgd_at", ALONE, Log(), "plus=label_smoothing", "train.label_smoothing=1/9")
    batch = first(trainer)
    rows = [reference.log_softmax(row) for row in trainer.method.model(batch.x_adv).double().tolist()]
    theirs = [-(0.9 * row[k] + 0.1 / 9 * (sum(row) - row[k])) for row, k in zip(rows, batch.y.tolist(), strict=True)]
    assert trainer.method.loss(batch).total.item() == pytest.approx(reference.mean(theirs), abs=1e-6)


@pytest.mark.parametrize("name", ["trades", "mart", "rlfat_trades", "tla"])
def test_any_method_takes_it(name: str) -> None:
    assert trainer_of(name, ALONE, Log(), "plus=label_smoothing").method.risk.label_smoothing == 0.1


def test_it_goes_with_an_average_and_wins_over_a_recipe() -> None:
    trainer = trainer_of("pgd_at", ALONE, Log(), "plus=[label_smoothing,ema]", "train.epochs=1")
    assert len(trainer.averages) == 1 and trainer.method.risk.label_smoothing == 0.1
    trainer.fit()
    cfg = configuration("pgd_at", "recipe=fastat", "plus=[ema,label_smoothing]")
    assert cfg.train.label_smoothing == 0.1 and set(cfg.plus) == {"ema", "label_smoothing"}


@pytest.mark.parametrize("name", ["fast_at", "n_fgsm", "grad_align", "gat", "nuat"])
def test_a_search_of_one_step_climbs_the_smoothed_loss_where_it_is_told_to(name: str) -> None:
    """It climbs the closed form, and finds another image than with whole labels; the outer loss knows nothing of it."""
    words = ("train.attack_label_smoothing=0.4", "model.norm=batch")
    smooth, plain = trainer_of(name, ALONE, Log(), *words), trainer_of(name, ALONE, Log(), "model.norm=batch")
    seen: list[float] = []

    def note(module: nn.Module, args: tuple[Tensor, Tensor], value: Tensor) -> None:
        seen.append(abs(float(value.detach().mean()) - smoothed(*args, 0.4)))

    smooth.method.attack_risk.register_forward_hook(note)
    found, hard = first(smooth), first(plain)
    assert seen and max(seen) < 1e-6
    assert not torch.equal(found.x_adv, hard.x_adv)
    assert smooth.method.risk.label_smoothing == 0
