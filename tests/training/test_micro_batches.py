"""Batches that go through in parts: the update of the whole batch, in less memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Stream
from atbench.errors import ConfigError
from atbench.methods import Method
from tests.support.contract import ALONE, Log, TwoProcesses, outcome, trainer_of
from tests.support.same_training import assert_same_training, trained
from tests.support.tiers import METHODS

#: Every way in which a step differs from that of most methods.
CASES = [
    ("pgd_at", ()),
    ("pgd_at", ("plus=awp", "plus.awp.steps=2", "train.micro_batch=2")),
    ("pgd_at", ("plus=ema", "train.clip_norm=0.1", "train.micro_batch=1")),
    ("pgd_at", ("dataset.augment=[{_target_: atbench.data.mixup.MixUp, alpha: 1.0}]",)),  # labels are shares
    ("trades", ("plus=awp",)),
    ("mart", ()),
    ("ard", ()),  # a teacher
    ("rst", ()),  # an unlabelled part
    ("dajat", ()),  # views, and a loss of its own for AWP
    ("atas", ()),  # a table on the padded canvas
    ("fgsm_mep", ()),  # a norm over the batch in `after_update`
    ("fgsm_uap", ()),  # the gradient of an input in `after_update`
    ("elle", ()),  # a mean in `after_update`
    ("liet", ("train.micro_batch=2",)),  # a value that has no rows
    ("sat_r1", ()),  # a last row of its own
    ("multi_norm_avg", ()),  # several copies of a batch
    ("msd", ()),
    ("free_at", ()),  # an update a round
    ("yopo", ()),  # rounds that add up to an update
    ("gal", ()),  # second order
]
#: What needs a whole batch for another reason than `gather` and streams.
PAIRED = {"clp"}

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(("name", "words"), CASES, ids=[" ".join((name, *words)) for name, words in CASES])
def test_parts_make_the_update_of_the_whole_batch(name: str, words: tuple[str, ...]) -> None:
    size = next((word for word in words if "micro_batch" in word), "train.micro_batch=4")
    others = [word for word in words if word != size]
    whole, parts = trained(name, *others), trained(name, *others, size)
    assert whole[0].micro_batches.count == 1 and parts[0].micro_batches.count >= 4
    assert_same_training(whole, parts)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where methods ask for other rows than their own, besides `after_update` and the end of an epoch."""
    places = list[str]()

    def recorded(ask: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            frame, names = sys._getframe(), set[str]()
            while frame := frame.f_back:  # type: ignore[assignment]
                names.add(frame.f_code.co_name)
            if not names & {"after_update", "on_epoch", "_end_of_epoch"} and "train_on" in names:
                places.append(ask.__name__)
            return ask(*args, **options)

        return call

    def from_method(batch: Callable[..., Any]) -> Callable[..., Any]:
        asking = recorded(batch)
        return lambda self, *at: (batch if self.name == "pool" else asking)(self, *at)  # that of a batch's own part

    monkeypatch.setattr(Method, "gather", recorded(Method.gather))
    monkeypatch.setattr(Stream, "batch", from_method(Stream.batch))
    return places


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_methods_say_whether_they_need_the_whole_batch(name: str, asked: list[str]) -> None:
    whole = trained(name)
    if not whole[0].method.takes_micro_batches:
        assert asked or name in PAIRED
        with pytest.raises(ConfigError, match=r"train\.micro_batch: 4 — \w+ needs all images of a batch at once"):
            trainer_of(name, ALONE, Log(), "train.micro_batch=4")
        return
    assert not asked
    parts = whole[0].micro_batches
    count = max(count for count in parts.counts if count <= 4)  # two of uat_*, whose batches have 6 rows and 10
    assert count > 1
    assert_same_training(whole, trained(name, f"train.micro_batch={parts.rows // count}"))


@pytest.mark.parametrize(("rows", "known"), [(5, "16, 8, 4, 2, 1"), (32, "16, 8, 4, 2, 1")])
def test_a_size_that_does_not_divide_a_batch_is_refused(rows: int, known: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.micro_batch: {rows} — .*use one of {known}"):
        trainer_of("pgd_at", ALONE, Log(), f"train.micro_batch={rows}")


def test_an_unlabelled_part_is_split_too() -> None:
    words = ("train.batch_size=18", "train.extra_data.fraction=0.34")  # 12 rows and 6
    counts = trainer_of("rst", ALONE, Log(), *words).micro_batches.counts
    assert counts == [1, 2, 3, 6]


def test_batchnorm_is_warned_about() -> None:
    assert not trainer_of("pgd_at", ALONE, Log(), "train.micro_batch=4").micro_batches.warnings()
    assert not trainer_of("pgd_at", ALONE, Log(), "model.norm=batch").micro_batches.warnings()
    (line,) = trainer_of("pgd_at", ALONE, Log(), "model.norm=batch", "train.micro_batch=4").micro_batches.warnings()
    assert "4 images in place of 16" in line and "4 times" in line


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    processes = TwoProcesses(tmp_path_factory.mktemp("two"))
    yield processes
    processes.close()


@pytest.mark.parametrize(("name", "words"), [("pgd_at", ("plus=awp",)), ("yopo", ()), ("fgsm_uap", ())])
def test_two_processes_in_parts_equal_one(name: str, words: tuple[str, ...], two: TwoProcesses) -> None:
    words = (*words, "train.micro_batch=4")
    two.begin(name, words)
    alone = outcome(name, ALONE, *words[:-1])
    first, second = two.outcomes(name, words)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), "the ranks differ"
        assert float((value.double() - first["state"][key].double()).abs().max()) <= 1e-12
    assert alone["loss"] == pytest.approx(first["loss"], abs=1e-10)


class Wrapped:
    """In place of DistributedDataParallel: writes down which passes would average gradients."""

    def __init__(self, method: Method) -> None:
        self.method, self.averaging, self.passes = method, True, list[bool]()

    def __call__(self, batch: Any, **options: Any) -> Any:
        self.passes.append(self.averaging)
        return self.method(batch, **options)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.averaging = False
        yield
        self.averaging = True


def test_processes_average_once_an_update_and_once_an_ascent() -> None:
    trainer = trainer_of("pgd_at", ALONE, Log(), "train.micro_batch=4", "plus=awp", "plus.awp.warmup=0")
    wrapped = Wrapped(trainer.method)
    trainer.train_step.distributed = wrapped  # type: ignore[assignment]
    trainer.train_batch()
    assert wrapped.passes == 2 * [False, False, False, True]


# Memory.


class Live:
    """Bytes of activations that are saved for a backward pass, now and at most."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {each.untyped_storage().data_ptr() for each in network.parameters()}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Saved:
        return Saved(self, tensor)


class Saved:
    """A saved tensor, counted while autograd holds it."""

    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        weight = tensor.untyped_storage().data_ptr() in live.weights
        self.bytes = 0 if weight else tensor.numel() * tensor.element_size()
        live.now += self.bytes
        live.peak = max(live.peak, live.now)

    def __del__(self) -> None:
        self.live.now -= self.bytes


def peak(name: str, *words: str) -> int:
    trainer = trainer_of(name, ALONE, Log(), "train.batch_size=32", *words)
    live = Live(trainer.method)
    with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda saved: saved.tensor):
        trainer.train_batch()
    return live.peak


@pytest.mark.parametrize("name", ["pgd_at", "trades", "fgsm_mep", "fgsm_uap", "free_at", "yopo", "gal", "dajat"])
def test_activations_are_those_of_a_part(name: str) -> None:
    assert peak(name, "train.micro_batch=4") < 1.3 / 8 * peak(name)
