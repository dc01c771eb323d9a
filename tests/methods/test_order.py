"""In which order each method's update forwards its images: running statistics lean to the last, and papers differ."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.support.contract import ALONE, Log, trainer_of

CLEAN, ADVERSARIAL, OTHER = "clean", "adversarial", "other"

#: What the model forwards in one update, in the order of the authors' code.
ORDERS: dict[tuple[str, ...], list[str]] = {
    # YisenWang/MART, mart.py
    ("mart",): [CLEAN, ADVERSARIAL],
    # zjfheart/Friendly-Adversarial-Training, FAT_for_TRADES.py and FAT_for_MART.py
    ("fat_trades",): [CLEAN, ADVERSARIAL],
    ("fat_mart",): [ADVERSARIAL, CLEAN],
    # jiequancui/DKL, train_dkl_cifar10.py
    ("dkl",): [ADVERSARIAL, CLEAN],
    # P2333/SCORE, gowal21uncovering/utils/trades.py and without_DDPM/train_cifar.py
    ("score",): [CLEAN, ADVERSARIAL],
    ("score", "method.adversarial_first=true"): [ADVERSARIAL, CLEAN],
    # yaodongyu/TRADES, trades.py, which forwards the clean images once more at the end
    ("trades",): [CLEAN, ADVERSARIAL],
    # yaircarmon/semisup-adv, losses.py
    ("rst",): [ADVERSARIAL, CLEAN],
    # dongyp13/memorization-AT, loss.py
    ("trades_te", "method.start=0"): [CLEAN, ADVERSARIAL],
    # imrahulr/hat, core/utils/hat.py
    ("hat",): [CLEAN, ADVERSARIAL, OTHER],
    # dvlab-research/LBGAT, lbgat.py, whatever beta is
    ("lbgat",): [ADVERSARIAL, CLEAN],
    ("lbgat", "method.beta=6"): [ADVERSARIAL, CLEAN],
}


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_images_are_forwarded_in_the_authors_order(words: tuple[str, ...]) -> None:
    trainer = trainer_of(words[0], ALONE, Log(), *words[1:])
    method, seen = trainer.method, []
    batch = method.perturb(trainer.data.batch(0, 0))

    def note(module: object, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        seen.append(CLEAN if x is batch.x else ADVERSARIAL if x is batch.x_adv else OTHER)

    method.model.register_forward_pre_hook(note)
    method.loss(batch)
    assert seen == ORDERS[words]
