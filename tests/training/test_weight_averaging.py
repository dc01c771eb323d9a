"""Averages of the weights: what they are, and that training never notices them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from atbench.errors import ConfigError, Interrupted
from atbench.methods import Clock
from atbench.training.weight_averaging import Ema, Fawa
from tests.support import worlds
from tests.support.contract import ALONE, Log, trainer_of

#: Averages, and what switches each on from the first epochs.
AVERAGES = {
    "ema": ("plus=ema",),
    "swa": ("plus=swa",),
    "fawa": ("plus=fawa", "plus.fawa.threshold=0"),
}


def moved(model: nn.Linear, value: float) -> nn.Linear:
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("warmup", [0.2, 0.25, 0.0])
def test_ema_by_hand(warmup: float) -> None:
    """After batch n of 10 with W = 10 · warmup: a copy while n < W, then min(0.3, (1 + n − W) / (10 + n − W))."""
    model, clock = nn.Linear(1, 1, bias=False), Clock(epochs=1, steps=10)
    ema = Ema(decay=0.3, warmup=warmup)
    expected = 0.0
    for n in range(1, 7):
        clock.step = n - 1
        ema.after_update(moved(model, float(n)), clock)
        since = n - 10 * warmup
        rate = 0.0 if since < 0 or n == 1 else min(0.3, (1 + since) / (10 + since))
        expected = rate * expected + (1 - rate) * n
        assert float(ema.values["weight"]) == pytest.approx(expected)


def test_decay_0_is_the_live_model_and_constant_weights_stay() -> None:
    model, clock = nn.Linear(1, 1, bias=False), Clock(epochs=1, steps=10)
    follow, still = Ema(decay=0.0, warmup=0.0), Ema(decay=0.99, warmup=0.0)
    for step in range(5):
        clock.step = step
        follow.after_update(moved(model, float(step)), clock)
        assert float(follow.values["weight"]) == step
        still.after_update(moved(model, 3.0), clock)
        assert float(still.values["weight"]) == 3.0


def test_a_horizon_is_a_share_of_the_training() -> None:
    """1/(1 − τ) = 0.25 · 40 updates, whatever the length; refused beside a decay, or without either."""
    model, clock = nn.Linear(1, 1, bias=False), Clock(epochs=4, steps=10, epoch=3, step=0)
    ema, same = Ema(horizon=0.25, warmup=0.0, ramp=False), Ema(decay=0.9, warmup=0.0, ramp=False)
    for step in range(3):
        clock.step = step
        for average in (ema, same):
            average.after_update(moved(model, float(step)), clock)
    assert float(ema.values["weight"]) == pytest.approx(float(same.values["weight"])) and ema.decay is None
    for given in ({}, {"decay": 0.9, "horizon": 0.1}):
        with pytest.raises(ConfigError, match="two ways"):
            Ema(**given)


def test_buffers_are_averaged_from_the_first_update_without_ramp() -> None:
    """FastAT_Benchmark: w̄ = w after the first update, then 0.75·w̄ + 0.25·w, of statistics too."""
    model, clock = nn.BatchNorm1d(1), Clock(epochs=1, steps=10)
    ema = Ema(decay=0.75, warmup=0.0, ramp=False, buffers=True)
    for step in range(3):
        clock.step = step
        nn.init.constant_(model.weight, float(step))
        model.running_mean.fill_(10.0 * step)
        ema.after_update(model, clock)
    assert float(ema.values["weight"]) == 0.75 * 0.25 + 0.25 * 2 and "num_batches_tracked" not in ema.values
    assert float(ema.values["running_mean"]) == 10 * float(ema.values["weight"])
    assert [float(value) for value in ema.statistics] == [float(ema.values["running_mean"]), 1.0]
    with ema.applied(model):
        assert float(model.running_mean) == 10 * float(model.weight.detach())
    assert float(model.running_mean) == 20


def test_applied_gives_the_average_and_takes_it_back() -> None:
    model, clock = nn.Linear(1, 1, bias=False), Clock(epochs=1, steps=10, step=5)
    ema = Ema(decay=0.5, warmup=0.0)
    ema.after_update(moved(model, 1.0), clock)
    moved(model, 7.0)
    with ema.applied(model):
        assert model.weight.item() == 1.0
    assert model.weight.item() == 7.0


@pytest.mark.parametrize("plus", AVERAGES)
def test_training_does_not_notice_an_average(plus: str) -> None:
    results = []
    for overrides in ((), AVERAGES[plus]):
        trainer = trainer_of("trades", ALONE, Log(), "model.norm=batch", *overrides)
        trainer.fit()
        results.append({name: value.clone() for name, value in trainer.method.state_dict().items()})
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_swa_is_the_mean_of_the_epochs_with_statistics_of_its_own() -> None:
    log = Log()
    overrides = ("model.norm=batch", "plus=swa", "plus.swa.start=0.0", "train.epochs=3")
    trainer = trainer_of("pgd_at", ALONE, log, *overrides)
    ends: list[dict[str, torch.Tensor]] = []
    average = trainer.averages[0]
    after_epoch = average.after_epoch

    def recorded(*arguments: Any) -> None:
        ends.append({name: value.detach().clone() for name, value in trainer.method.model.named_parameters()})
        after_epoch(*arguments)

    average.after_epoch = recorded  # type: ignore[method-assign]
    trainer.fit()
    for name in ends[0]:
        torch.testing.assert_close(average.values[name], torch.stack([end[name] for end in ends]).mean(dim=0))
    live = trainer.method.model.state_dict()
    means = [name for name in average.values if name.endswith("running_mean")]
    assert means and not any(torch.equal(average.values[name], live[name]) for name in means)


@pytest.mark.parametrize("words", [("attack.bn=train",), ("attack.bn=eval",), ("method=free_at",)])
def test_statistics_of_swa_are_those_of_the_clean_images(words: tuple[str, ...]) -> None:
    """Every batch of the epoch once through the mean weights; no iterate of an attack counts, whatever its mode."""
    name = "free_at" if words == ("method=free_at",) else "pgd_at"
    trainer = trainer_of(name, ALONE, Log(), "model.norm=batch", "plus=swa", "plus.swa.start=0.0", *words)
    trainer.fit()
    clock, data = trainer.method.clock, trainer.data
    with trainer.evaluated() as model:
        model.eval()
        first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        inputs: list[torch.Tensor] = []
        hook = first.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
        with torch.no_grad():
            for step in range(clock.steps):
                model(data.batch(clock.epochs - 1, step).x)
        hook.remove()
        assert first.num_batches_tracked == clock.steps == len(inputs)
        mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
        variance = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
        torch.testing.assert_close(first.running_mean, mean)
        torch.testing.assert_close(first.running_var, variance)


@pytest.mark.parametrize("plus", AVERAGES)
def test_the_average_is_what_is_selected_and_saved(plus: str) -> None:
    trainer = trainer_of("pgd_at", ALONE, Log(), *AVERAGES[plus], "train.epochs=3")
    trainer.fit()
    saved, live = trainer.state()["model"], trainer.method.model.state_dict()
    name = next(name for name in live if name.endswith("weight"))
    assert torch.equal(saved[name], trainer.averages[0].values[name]) and not torch.equal(saved[name], live[name])


@pytest.mark.parametrize("plus", ["ema", "swa"])
@pytest.mark.parametrize("name", ["fast_at", "n_fgsm", "atas"])
def test_averages_go_with_single_step_methods(name: str, plus: str) -> None:
    """A run that was stopped in its second epoch ends with the average of the undisturbed one, bit for bit, and it is
    what is evaluated.
    """
    words = ("model.norm=batch", f"plus={plus}", *(("plus.swa.start=0.0",) if plus == "swa" else ()))
    undisturbed, log = trainer_of(name, ALONE, Log(), *words), Log()
    undisturbed.fit()
    with pytest.raises(Interrupted):
        trainer_of(name, ALONE, log, *words, stop_after=undisturbed.data.steps + 2).fit()
    resumed = trainer_of(name, ALONE, log, *words)
    resumed.load(torch.load(io.BytesIO(log.saved["last"]), weights_only=True))
    resumed.fit()
    live, (average,) = resumed.method.model.state_dict(), resumed.averages
    assert worlds.same(average.values, undisturbed.averages[0].values)
    assert worlds.same(resumed.method.state_dict(), undisturbed.method.state_dict())
    before = {key: value.clone() for key, value in live.items()}
    with resumed.evaluated() as network:
        found = network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in average.values.items())
        assert any(not torch.equal(found[key], before[key]) for key in average.values), (
            "the average is the live network"
        )
    assert worlds.same(before, resumed.method.model.state_dict())


def test_the_better_of_average_and_live_network_stands_for_its_epoch() -> None:
    """Scripted figures of three epochs: the average is better in the first and, by clean accuracy, in the last, the
    live network in the second; the best checkpoint is the live network of the second.
    """
    log, words = Log(), ("plus=ema", "plus.ema.decay=0.9", "train.epochs=3", "train.selection.networks=both")
    trainer = trainer_of("pgd_at", ALONE, log, *words)
    script = iter([(0.3, 0.5), (0.2, 0.6), (0.3, 0.5), (0.4, 0.5), (0.4, 0.5), (0.4, 0.4)])
    live = []

    def figures(network: nn.Module) -> dict[str, Any]:
        live.append({name: value.clone() for name, value in network.state_dict().items()})
        pgd, clean = next(script)
        return {"val": {"pgd": pgd, "clean": clean, "n": 8, "k": 2}, "fit": {"pgd": 0.5, "n": 8}, "gap": 0.0}

    trainer.validation.figures = figures  # type: ignore[method-assign]
    trainer.fit()
    assert [(row["network"], row["best"]) for row in log.rows] == [
        ("average", True),
        ("live", True),
        ("average", False),
    ]
    best, last = (torch.load(io.BytesIO(log.saved[name]), weights_only=True) for name in ("best", "last"))
    assert best["best"] == {"score": 0.4, "clean": 0.5, "epoch": 2, "n": 8, "network": "live"}
    assert worlds.same(best["model"], live[3]) and worlds.same(last["model"], live[4])
    assert not worlds.same(live[2], live[3])


def test_without_an_average_there_is_one_network_to_select() -> None:
    log = Log()
    trainer_of("pgd_at", ALONE, log, "train.epochs=1", "train.selection.networks=both").fit()
    assert "network" not in log.rows[0]
    with pytest.raises(ConfigError, match=r"train\.selection\.networks: live.*average, both"):
        trainer_of("pgd_at", ALONE, Log(), "train.selection.networks=live")


def test_fawa_by_hand() -> None:
    """Epochs whose worst class is below the threshold leave no trace, before the first that is not and after it."""
    model, clock = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)), Clock(epochs=6, steps=10)
    fawa, expected = Fawa(decay=0.7, threshold=0.2), None
    for value, worst in ((1.0, 0.19), (2.0, 0.2), (3.0, 0.5), (4.0, 0.0), (5.0, 0.3)):
        moved(model[0], value)
        model[1].running_mean.fill_(10 * value)
        fawa.after_update(model, clock)
        fawa.after_epoch(model, clock, lambda: None, lambda network, worst=worst: worst)
        if worst >= 0.2:
            expected = value if expected is None else 0.7 * expected + 0.3 * value
        assert fawa.ready == (expected is not None)
        if expected is not None:
            assert float(fawa.values["0.weight"]) == pytest.approx(expected)
            assert float(fawa.values["1.running_mean"]) == pytest.approx(10 * expected)


@pytest.mark.parametrize(("threshold", "epochs"), [(0.0, 3), (1.1, 0)])
def test_fawa_asks_the_live_model_and_a_threshold_out_of_reach_never_starts_it(threshold: float, epochs: int) -> None:
    trainer = trainer_of(
        "pgd_at", ALONE, Log(), "plus=fawa", f"plus.fawa.threshold={threshold}", "train.epochs=3", "model.norm=batch"
    )
    worst_class, asked = trainer.validation.worst_class, []

    def recorded(network: nn.Module) -> float:
        asked.append(worlds.snapshot(network))
        return worst_class(network)

    trainer.validation.worst_class = recorded  # type: ignore[method-assign]
    trainer.fit()
    (average,) = trainer.averages
    assert len(asked) == 3 and worlds.same(asked[-1], worlds.snapshot(trainer.method.model))
    assert average.ready == bool(epochs)
    for name, value in average.values.items():
        first, second, third = (state[name] for state in asked)
        torch.testing.assert_close(value, 0.88 * (0.88 * first + 0.12 * second) + 0.12 * third)
