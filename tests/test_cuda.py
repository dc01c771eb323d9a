"""What has to hold on a CUDA device; `make gpu` runs these. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.models import attack_mode, weight_casts
from atbench.runs.seeding import ExampleDraws
from atbench.training.stopwatch import Stopwatch, wait_for
from scripts.gpu.capture import deterministic
from scripts.gpu.parity import compare, first_step
from scripts.gpu.trainers import fit
from tests.support.cuda import DEVICE, NEEDS_CUDA, begun, trained
from tests.support.same_training import SmallDevice

pytestmark = NEEDS_CUDA


@pytest.mark.parametrize("name", ["pgd_at", "trades", "free_at", "fgsm_mep", "mart"])
def test_one_step_in_float64_is_that_of_the_cpu(name: str) -> None:
    reference = first_step(name, torch.device("cpu"), torch.float64)
    result = compare(reference, first_step(name, DEVICE, torch.float64, reference.before), "float64")
    assert result["agrees"], result
    moved = max(float((reference.after[key] - value).abs().max()) for key, value in reference.before.items())
    assert moved > 1e-4, "nothing was trained"


@pytest.mark.parametrize("name", ["pgd_at", "free_at"])
@deterministic()
def test_a_resumed_training_is_bit_equal(name: str) -> None:
    whole = trained(3, f"method={name}").state()["method"]
    resumed = trained(2, f"method={name}", state=trained(1, f"method={name}").state()).state()["method"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_bf16_updates_float32_weights() -> None:
    words = ("method=trades", "train.precision.attack=bf16", "train.precision.update=bf16", "train.channels_last=true")
    start = begun(*words).state()["method"]
    weights = trained(2, *words).state()["method"]
    floats = {key: value for key, value in weights.items() if value.is_floating_point()}
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in floats.values())
    assert any(not torch.equal(value, start[key]) for key, value in floats.items())


def test_an_examples_numbers_do_not_depend_on_its_batch() -> None:
    index = torch.arange(60, 70)  # from two chunks
    whole = ExampleDraws(0, "start", index=index).uniform(torch.empty(10, 3, device=DEVICE))
    part = ExampleDraws(0, "start", index=index[3:7]).uniform(torch.empty(4, 3, device=DEVICE))
    assert torch.equal(whole[3:7], part)
    assert len(whole.unique()) > 20


@pytest.fixture
def unforgiving() -> Iterator[None]:
    """Whatever waits for the device raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "words",
    [
        *((f"method={name}",) for name in ("pgd_at", "trades", "mart", "fast_at", "fgsm_mep", "free_at")),
        ("method=trades", "plus=awp", "plus.awp.warmup=0"),
        ("method=pgd_at", "plus=ema", "train.clip_norm=1.0"),
        ("method=pgd_at", "train.precision.attack=bf16", "train.precision.update=bf16"),
        ("method=pgd_at", "dataset.augment={_target_: atbench.data.augment.PadCropFlip, pad: 1, flip: true}"),
    ],
    ids=" ".join,
)
def test_a_batch_never_waits_for_the_device(words: tuple[str, ...], unforgiving: None) -> None:
    trainer = begun(*words)
    trainer.method.train()
    for step in range(4):  # libraries load, tables fill, searches are recorded
        trainer.method.clock.step = step % trainer.data.steps
        trainer.train_batch()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    trainer.train_batch()


def test_laps_are_as_long_as_the_device_works() -> None:
    watch, x = Stopwatch(DEVICE), torch.rand(4096, 4096, device=DEVICE)
    x @ x
    torch.cuda.synchronize()
    started = watch.now()
    for _ in range(50):
        x @ x
    watch.laps.append((started, watch.now()))
    wait_for(DEVICE)
    assert watch.seconds > 50 * 2 * 4096**3 / 1e16, "faster than any device: only the launches were timed"


@pytest.mark.parametrize("recipe", ["common", "adam"])  # SGD with momentum, Adam
@deterministic()
def test_optimizers_are_fused_and_go_on_bit_equal(recipe: str) -> None:
    words = (f"recipe={recipe}",)
    start = trained(1, *words)
    assert all(group["fused"] for each in start.groups for group in each.optimizer.param_groups)
    whole, resumed = trained(3, *words).state()["method"], trained(2, *words, state=start.state()).state()["method"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@deterministic()
def test_casts_of_frozen_weights_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = begun("method=pgd_at")
    model, batch = trainer.method.model, trainer.data.batch(0, 0)
    attack = GradientAttack("linf", 0.3, 3, 0.1, start="zero")

    def search() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16), attack_mode(model, "eval"):
            return attack(Objective(model, cross_entropy, batch.y), batch.x)

    cast = search()
    monkeypatch.setattr(weight_casts, "castable", lambda module: False)
    assert torch.equal(cast, search())


@deterministic()
def test_memory_that_runs_out_makes_smaller_parts() -> None:
    words = ("method=pgd_at", "model.norm=none")
    whole = trained(2, *words).method.state_dict()
    trainer = begun(*words, steps=2)
    SmallDevice(trainer.method.model, rows=4)
    fit(trainer)
    assert trainer.micro_batches.count == 4
    for key, value in trainer.method.state_dict().items():
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=1e-4)
