"""Random numbers: functions of where they are used, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from atbench.runs.seeding import Draws, ExampleDraws, derive_seed, generator


def test_derive_depends_on_every_part() -> None:
    seeds = {
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a"),
        derive_seed(0, "a", 0),
        derive_seed(0, "a", 1),
        derive_seed(0, 0, "a"),
        derive_seed(0, "a", "0", 0),
    }
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)


def test_derive_never_changes() -> None:
    """Old runs must resume: the numbers of a release are the numbers of the next."""
    import hashlib

    expected = int.from_bytes(hashlib.blake2b(b"7/search/3/1", digest_size=8).digest(), "big") // 2
    assert derive_seed(7, "search", 3, 1) == expected


def test_generators_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    Draws(generator("cpu", 0, "x")).normal(torch.empty(4))
    ExampleDraws(0, "x", index=torch.arange(4)).uniform(torch.empty(4, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_ranks_draw_the_rows_of_the_joint_draw(world: int, kind: str) -> None:
    """Over several draws of several shapes in a row."""
    whole = Draws(generator("cpu", 5, "place"))
    ranks = [Draws(generator("cpu", 5, "place"), rank, world) for rank in range(world)]
    for shape in ((1, 3, 3), (), (7,)):
        joint = getattr(whole, kind)(torch.empty((6, *shape), dtype=torch.float64))
        parts = [getattr(draws, kind)(torch.empty((6 // world, *shape), dtype=torch.float64)) for draws in ranks]
        assert torch.equal(torch.cat(parts), joint)


def test_scalar_is_the_same_on_all_ranks() -> None:
    values = {Draws(generator("cpu", 5, "place"), rank, 2).scalar(2, 3) for rank in range(2)}
    assert len(values) == 1 and 2 <= values.pop() < 3


def test_uniform_and_normal_are_what_they_say() -> None:
    draws = Draws(generator("cpu", 0, "moments"))
    uniform, normal = draws.uniform(torch.empty(20000, 4)), draws.normal(torch.empty(20000, 4))
    assert uniform.min() >= -1 and uniform.max() <= 1
    assert uniform.mean().abs() < 0.02 and uniform.var().item() == pytest.approx(1 / 3, abs=0.01)
    assert normal.mean().abs() < 0.02 and normal.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_example_draws_do_not_depend_on_batching(kind: str) -> None:
    """In batches of any size, in any order, and for a part of the examples alone."""
    index = torch.arange(200)
    whole = getattr(ExampleDraws(3, "start", index=index), kind)(torch.empty(200, 1, 2, 2))
    for size in (1, 7, 64, 130):
        parts = [
            getattr(ExampleDraws(3, "start", index=i), kind)(torch.empty(len(i), 1, 2, 2)) for i in index.split(size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    some = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(getattr(ExampleDraws(3, "start", index=some), kind)(torch.empty(50, 1, 2, 2)), whole[some])
    assert len(whole.flatten().unique()) > 790


def test_example_draws_differ_between_calls_and_places() -> None:
    index, like = torch.arange(10), torch.empty(10, 4)
    draws = ExampleDraws(0, "start", 0, index=index)
    first, second = draws.uniform(like), draws.uniform(like)
    assert not torch.equal(first, second)
    assert not torch.equal(ExampleDraws(0, "start", 1, index=index).uniform(like), first)
    assert not torch.equal(ExampleDraws(1, "start", 0, index=index).uniform(like), first)
    assert torch.equal(ExampleDraws(0, "start", 0, index=index).uniform(like), first)
