"""`atbench bench plan`: what a run would take."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from atbench.bench import few_steps, plan
from atbench.config import registry
from atbench.data import torchvision_sets
from atbench.data.stand_in import FORMS, stand_in
from atbench.errors import ConfigError
from tests.support.configs import resolved

TINY = ("dataset=digits", "model.width=4", "attack.steps=3", "threads=1", "eval=smoke", "guard.collapse=null")
AS_COUNTED = ("--tflops", "1", "--images", "16")


def cost_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert plan.plan([*TINY, *words, "--json"]) == 0
    cost: dict[str, Any] = json.loads(capsys.readouterr().out)
    return cost


def every_step_takes(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(few_steps, "perf_counter", lambda: seconds * next(ticks))


def test_operations_are_those_of_the_method_and_the_rate_divides_them(capsys: pytest.CaptureFixture[str]) -> None:
    """TRADES takes 2k + 7 forward passes, PGD-AT 2k + 3: the same network, the same count of a pass."""
    trades, pgd_at = (cost_of(capsys, f"method={name}", *AS_COUNTED) for name in ("trades", "pgd_at"))
    assert trades["step"] / pgd_at["step"] == pytest.approx((2 * 3 + 7) / (2 * 3 + 3), rel=0.02)
    assert trades["training"] == pytest.approx(20 * 35 * trades["step"]), "20 epochs of ⌊1147 / 32⌋ steps"
    assert "not measured" in trades["way"]
    twice = cost_of(capsys, "method=trades", "--tflops", "2", "--images", "16")
    assert twice["step"] == pytest.approx(trades["step"] / 2)
    assert twice["evaluation_at_most"] == pytest.approx(trades["evaluation_at_most"] / 2)


@pytest.mark.parametrize("words", [("method=fat",), ("method=iaat", "attack.bn=eval")], ids=" ".join)
def test_a_pass_of_an_evaluation_costs_the_same_whatever_the_search_passes_over(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is PGD-AT's; an untrained one is wrong on most images, so that most are not searched."""
    plain, varies = (cost_of(capsys, *each, *AS_COUNTED) for each in (("method=pgd_at",), words))
    assert varies["step"] < plain["step"]
    assert varies["evaluation_at_most"] == pytest.approx(plain["evaluation_at_most"], rel=0.05)


def test_what_begins_late_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """AWP begins after a twentieth of the training; its gradient is a forward and a backward pass more."""
    plain, awp = (cost_of(capsys, "method=pgd_at", *AS_COUNTED, *plus) for plus in ((), ("plus=awp",)))
    assert awp["step"] / plain["step"] == pytest.approx((2 * 3 + 3 + 3) / (2 * 3 + 3), rel=0.03)


def test_a_measured_step_is_multiplied_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    every_step_takes(2.0, monkeypatch)
    cost = cost_of(capsys, "method=pgd_at", "train.batch_size=32", "--price-per-hour", "3")
    assert cost["step"] == pytest.approx(2.0) and cost["training"] == pytest.approx(2.0 * 20 * 35)
    total = cost["training"] + cost["validation_at_most"] + cost["evaluation_at_most"]
    assert cost["device_hours"] == pytest.approx(total / 3600) and cost["price"] == pytest.approx(3 * total / 3600)
    assert cost["way"].endswith("steps of 32 images") and cost["memory_of"] == "peak of the process"
    few = cost_of(capsys, "method=pgd_at", "train.batch_size=32", "--images", "8")
    assert few["step"] == pytest.approx(8.0) and few["way"].endswith("steps of 8 images, scaled to 32")
    two = cost_of(capsys, "method=pgd_at", "train.batch_size=32", "--processes", "2")
    assert two["step"] == pytest.approx(2.0), "a step of 16 images, which is what one of two processes does"
    assert two["device_hours"] == pytest.approx(
        2 * sum(two[key] for key in two if key.startswith(("tr", "va", "ev"))) / 3600
    )


def test_memory_is_what_does_not_grow_and_what_the_update_keeps_of_each_image(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def memory(*words: str) -> int:
        return int(cost_of(capsys, *AS_COUNTED, *words)["memory"])

    small, large, huge = (memory("method=pgd_at", f"train.batch_size={size}") for size in (16, 32, 64))
    kept = (large - small) / 16
    assert huge - large == pytest.approx(32 * kept, abs=2) and kept > 0
    fixed = small - 16 * kept
    network = resolved("method=pgd_at", *TINY)
    parameters = 4 * _parameters(network)
    assert fixed == pytest.approx(3 * parameters, rel=0.05), "weights, gradients and momentum, and a few buffers"
    averaged = memory("method=pgd_at", "train.batch_size=16", "plus=ema")
    assert averaged - small == pytest.approx(parameters, rel=0.01)
    trades = [memory("method=trades", f"train.batch_size={size}") for size in (16, 32)]
    assert (trades[1] - trades[0]) / 16 == pytest.approx(2 * kept, rel=0.1), "two graphs, of x and of x'"
    tables = memory("method=fgsm_mep", "train.batch_size=16") - 16 * kept
    assert tables > fixed + 2 * 1147 * 64 * 4, "two float images of each train image"


def _parameters(cfg: Any) -> int:
    from atbench.data.digits import digits
    from atbench.workflows import factory

    return sum(parameter.numel() for parameter in factory.make_model(cfg, digits()).parameters())


def test_data_that_are_not_here_are_replaced_and_not_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "fetch", lambda *_: pytest.fail("it was fetched"))
    pool = ("train.extra_data.path=20m.npz", "train.extra_data.labels=true", "train.extra_data.fraction=0.7")
    words = ("dataset=cifar10", "method=pgd_at", f"data_dir={tmp_path}", "train.epochs=2", *AS_COUNTED)
    cost, more = cost_of(capsys, *words), cost_of(capsys, *words, *pool, "--further-images", "1000")
    assert "382 steps of 128 images" in cost["run"], "⌊49,000 / 128⌋"
    assert any("stand in" in note for note in cost["notes"]) and not list(tmp_path.iterdir())
    assert more["step"] == cost["step"] and more["memory"] - cost["memory"] == 1000 * 3072


def test_the_form_of_a_stand_in_is_that_of_the_data_set() -> None:
    assert set(FORMS) < set(registry.options("dataset", [registry.conf_dir()]))
    for name, form in FORMS.items():
        node = resolved(f"dataset={name}").dataset.source
        assert 0 < node.validation < form.train
        assert len(node.get("mean", [0])) == form.shape[0], name
        if "classes" in node:
            assert len(node.classes) == form.classes, name
    source = stand_in("mnist", 20, 5, pad=2)
    assert source.shape == (1, 32, 32) and len(source.train) == 25 and source.validation == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--processes", "3"), "does not divide"),
        (("--tflops", "0"), "arguments"),
        (("--images", "none"), "arguments"),
        (("method=tradse",), "did you mean 'trades'?"),
        (("train.epochs=0",), "train.epochs"),
    ],
)
def test_what_cannot_be_is_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan.plan([*TINY, *words])
    assert said in str(refused.value)


def test_a_step_that_takes_too_long_here_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LONG", 0.0)
    monkeypatch.setattr(plan, "seconds_per_step", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(ConfigError, match="--tflops T"):
        plan.plan([*TINY, "method=pgd_at"])


def test_the_lines_say_which_way_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.plan([*TINY, "method=fat", *AS_COUNTED, "--price-per-hour", "2"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[:9]] == [
        *("run", "way", "step", "training", "validation", "evaluation", "memory", "device-hours", "price")
    ]
    assert "arithmetic, not measured" in said and "note: the search changes" in said
