"""BatchNorm over the whole registry: statistics move exactly where the mode says so, in the search, update and AWP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.data import Batch
from atbench.methods import Method
from tests.support.contract import ACCUMULATE, ALONE, Log, trainer_of
from tests.support.tiers import METHODS

#: (in train mode, running statistics follow) of every forward in a mode of the attack.
MODES = {"eval": (False, True), "train": (True, True), "batch": (True, False)}
#: Methods that forward in a mode of their own besides the attack's, and the paper that says so.
ALSO = {
    **{name: {MODES["batch"]} for name in ("gat", "nuat")},  # the clean outputs that the attack compares with
    # The clean batch gives the statistics, and the perturbed images are normalised by them.
    "llr": {MODES["train"], MODES["eval"]},
    "kim_interval": {MODES["eval"]},  # the points on the way, of a part of the batch
    "liet": {MODES["eval"]},  # the pattern of the labels, from grey images
    "mma": {MODES["train"], MODES["batch"]},  # the clean batch and the bisection; the clean batch again in the loss
    "ssdrl": {MODES["batch"]},  # all but the clean labelled images
    "tla": {MODES["eval"]},  # negatives are mined in eval mode
}
#: Methods whose search makes a forward that the update uses: copies of the statistics follow, which the loss takes.
HANDED_ON = {"llr"}


def trained(method: Method) -> list[_BatchNorm]:
    """The layers of the networks that learn."""
    parts = [module for group in method.groups().values() for module in group.modules()]
    return [module for module in dict.fromkeys(parts) if isinstance(module, _BatchNorm)]


@contextmanager
def watched(layers: list[_BatchNorm]) -> Iterator[list[tuple[_BatchNorm, tuple[bool, bool], Tensor]]]:
    """(layer, mode, input) of every forward in the block."""
    seen: list[tuple[_BatchNorm, tuple[bool, bool], Tensor]] = []

    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        seen.append((layer, (layer.training, layer.track_running_stats), inputs[0].detach()))

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    yield seen
    for hook in hooks:
        hook.remove()


def statistics(layers: list[_BatchNorm]) -> list[Tensor]:
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return [getattr(layer, kind).clone() for layer in layers for kind in kinds]


def make(name: str, *overrides: str) -> tuple[Method, list[_BatchNorm], Batch]:
    """A method with BatchNorm in the second of its two epochs."""
    trainer = trainer_of(name, ALONE, Log(), "model.norm=batch", *overrides)
    trainer.method.clock.epoch = 1
    trainer.method.train()
    layers = trained(trainer.method)
    assert layers, "nothing to look at"
    return trainer.method, layers, trainer.data.batch(1, 0)


def searched(method: Method, batch: Batch) -> Batch:
    """The batch of the first round, perturbed if the method asks for it."""
    first = next(iter(method.inner_updates(batch)))
    return method.perturb(first.batch) if first.perturb else first.batch


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.every_method("name")
@pytest.mark.every_pair("name", "mode")
def test_the_search_keeps_to_its_mode(name: str, mode: str) -> None:
    method, layers, batch = make(name, f"attack.bn={mode}")
    before, modes = statistics(layers), [module.training for module in method.modules()]
    with watched(layers) as seen:
        searched(method, batch)
    assert {how for _, how, _ in seen} <= {MODES[mode], *ALSO.get(name, set())}
    moved = any(not torch.equal(a, b) for a, b in zip(before, statistics(layers), strict=True))
    assert moved is (mode == "train" if name in HANDED_ON else any(how == MODES["train"] for _, how, _ in seen))
    assert [module.training for module in method.modules()] == modes


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.every_method("name")
def test_the_update_moves_them_by_its_own_batches(name: str) -> None:
    """r ← 0.9 r + 0.1 · (mean or unbiased variance) once for each forward of the loss in train mode, and not else."""
    method, layers, batch = make(name)
    before = statistics(layers)
    with watched(layers) as seen:
        batch = searched(method, batch)
        if name not in HANDED_ON:
            seen.clear()
            before = statistics(layers)
        method.loss(batch)
    expected = {layer: before[3 * place : 3 * place + 3] for place, layer in enumerate(layers)}
    assert any(how == (True, True) for _, how, _ in seen), "an update in eval mode"
    assert {how for _, how, _ in seen} <= {(True, True), *ALSO.get(name, set())}
    for layer, how, x in seen:
        if how == (True, True):
            axes = [0, *range(2, x.ndim)]
            mean, variance, count = expected[layer]
            expected[layer] = [0.9 * mean + 0.1 * x.mean(axes), 0.9 * variance + 0.1 * x.var(axes), count + 1]
    for found, wanted in zip(statistics(layers), [part for layer in layers for part in expected[layer]], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ACCUMULATE])
@pytest.mark.every_method("name")
def test_a_weight_perturbation_is_not_seen(name: str) -> None:
    """The ascent's forwards count no batch: as many are tracked with AWP as without it."""
    counts = []
    for plus in ((), ("plus=awp", "plus.awp.warmup=0")):
        trainer = trainer_of(name, ALONE, Log(), "model.norm=batch", *plus)
        trainer.train_batch()
        counts.append([int(layer.num_batches_tracked) for layer in trained(trainer.method)])
    assert counts[0] == counts[1] and max(counts[0]) > 0
