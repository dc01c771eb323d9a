"""No training step waits for the device: the host runs ahead, or a GPU starves between kernels."""

from __future__ import annotations

import pytest
import torch

from atbench.training import Trainer
from tests.support.contract import ALONE, Log, trainer_of
from tests.support.tiers import METHODS
from tests.support.waits import CudaOneHot, Waits

#: Methods that wait, or seem to on a CPU.
WAITING = {
    # What is computed next depends on values: which images are done, or chosen, or whether it has converged.
    *("ccat", "dynamic_at", "fat", "fat_mart", "fat_trades", "gair_fat", "gairat", "kim_interval", "mma", "szegedy"),
    *("cat_curriculum", "feature_scatter", "grad_align", "kurakin_mixed_batch", "trs"),
    # A number for the host is drawn on the device.
    *("liet", "msd"),
    # AutoAugment takes each image another way; probabilities of dropout are made into a tensor.
    *("dajat", "sads"),
    # On a CPU alone: Adam, which is fused on CUDA; numbers of a generator of the CPU; a constant that is written.
    *("adt_exp_am", "adt_imp_am", "fgsm_fuap", "dverge", "eat", "atas"),
}
COMMON = {
    **{name: (name,) for name in ("pgd_at", "trades", "mart", "fast_at", "fgsm_mep", "free_at")},
    **{"awp": ("trades", "plus=awp", "plus.awp.warmup=0"), "ema": ("pgd_at", "plus=ema", "train.clip_norm=1.0")},
}


def ready(method: str, *words: str) -> Trainer:
    trainer = trainer_of(method, ALONE, Log(), "model.norm=batch", *words)
    trainer.method.train()
    trainer.train_batch()  # tables and optimizers are filled
    trainer.method.clock.step = 1
    trainer.train_step.check_finite = lambda: None  # type: ignore[method-assign]  # on CUDA it is left to the epoch
    return trainer


@pytest.mark.parametrize("words", COMMON.values(), ids=COMMON)
def test_a_batch_and_its_steps_never_wait(words: tuple[str, ...]) -> None:
    trainer = ready(*words)
    with CudaOneHot(), Waits() as waits:
        trainer.train_batch()
    assert waits.lines == []
    (*_, last) = trainer.method.inner_updates(trainer.data.batch(0, 2))
    with CudaOneHot(), Waits() as waits:
        trainer.train_step(last)
    assert waits.lines == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_a_method_that_waits_is_known_to(name: str) -> None:
    trainer = ready(name)
    with CudaOneHot(), Waits() as waits:
        trainer.train_batch()
    assert name in WAITING or waits.lines == []


def test_mixed_images_and_crops_do_not_wait() -> None:
    steps = (
        "{_target_: atbench.data.augment.PadCropFlip, pad: 1, flip: true}",
        "{_target_: atbench.data.mixup.CutMix, alpha: 1.0}",
    )
    trainer = ready("pgd_at", f"dataset.augment=[{','.join(steps)}]")
    batch = trainer.data.batch(0, 2)
    assert batch.y.ndim == 2 and batch.view is not None
    with CudaOneHot(), Waits() as waits:
        trainer.data.batch(0, 3)
    # A share and a box, drawn on the CPU, are all that is read.
    assert all("seeding.py" in line for line in waits.lines)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0)[0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, x[:1]),
        lambda x: x + torch.tensor(2.0),
        lambda x: bool((x > 0).any()),
    ],
)
def test_what_waits_is_seen(waiting: object) -> None:
    assert callable(waiting)
    x = torch.ones(3)
    with Waits() as waits:
        waiting(x)
    assert waits.lines
