"""`Replay` on fake graphs: static inputs, cloned outputs, what a key tells apart, what is not captured."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from atbench.models import replay
from atbench.models.hooks import has_hooks
from atbench.models.replay import KEPT, WARM_UP, Replay, fingerprint
from tests.support.fake_graphs import FakeGraph, install

CALLS = 1 + WARM_UP + 1  # the plain call, those before the capture, and the capture


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    return install(monkeypatch)


class Counted:
    """3x + w, and how often Python computed it."""

    def __init__(self) -> None:
        self.calls, self.w = 0, torch.ones(2)

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 3 * x + self.w


def test_elsewhere_it_is_a_call() -> None:
    replayed, fn = Replay(), Counted()
    for _ in range(5):
        assert torch.equal(replayed("key", fn, torch.ones(2)), torch.full((2,), 4.0))
    assert fn.calls == 5 and not replayed.graphs


def test_inputs_are_copied_and_outputs_are_the_callers_own(graphs: list[FakeGraph]) -> None:
    replayed, fn = Replay(), Counted()
    results = [replayed("key", fn, torch.full((2,), float(i))) for i in range(5)]
    assert [result.tolist() for result in results] == [[3.0 * i + 1] * 2 for i in range(5)]
    assert fn.calls == CALLS and len(graphs) == 1 and graphs[0].replays == 4


def test_what_is_at_its_place_is_read_there(graphs: list[FakeGraph]) -> None:
    replayed, fn = Replay(), Counted()
    for i in range(6):
        fn.w.fill_(i)
        assert replayed("key", fn, torch.zeros(2)).tolist() == [i, i]
    assert fn.calls == CALLS


def test_a_graph_is_of_one_key_shape_type_layout_and_autocast(graphs: list[FakeGraph]) -> None:
    replayed, x = Replay(), torch.rand(2, 3, 4, 4)

    def calls(key: str, x: Tensor) -> None:
        for _ in range(3):
            replayed(key, torch.sin, x)

    calls("a", x)
    for count, (key, other) in enumerate(
        [("b", x), ("a", x[:1]), ("a", x.double()), ("a", x.contiguous(memory_format=torch.channels_last))], start=2
    ):
        calls(key, other)
        assert len(graphs) == count
    with torch.autocast("cpu", torch.bfloat16):
        calls("a", x)
    assert len(graphs) == 6 and all(graph.replays == 2 for graph in graphs)


def test_few_graphs_are_kept_and_the_latest_used_stay(graphs: list[FakeGraph]) -> None:
    replayed, fn = Replay(), Counted()
    for i in range(KEPT + 3):
        for key in ("often", i, i):
            replayed(key, fn, torch.ones(2))
    assert len(replayed.graphs) == KEPT and any(key[0] == "often" for key in replayed.graphs)  # type: ignore[index]


def test_what_comes_once_is_not_captured(graphs: list[FakeGraph]) -> None:
    replayed, fn = Replay(), Counted()
    for count in range(1, 200):
        replayed("key", fn, torch.ones(count, 2))
    assert not graphs and fn.calls == 199 and len(replayed.seen) < 100


def test_what_draws_is_not_captured(graphs: list[FakeGraph]) -> None:
    replayed, dropout = Replay(), nn.Dropout(0.5)
    torch.manual_seed(0)
    drawn = [replayed("key", dropout, torch.ones(20)) for _ in range(4)]
    torch.manual_seed(0)
    assert not graphs and all(torch.equal(each, dropout(torch.ones(20))) for each in drawn)


def test_a_failure_is_said_once_and_ends_all_captures(
    graphs: list[FakeGraph], capsys: pytest.CaptureFixture[str]
) -> None:
    def waits(x: Tensor) -> Tensor:
        return x * float(x.sum())

    replayed, fn, moved = Replay(), Counted(), torch.zeros(())
    for key in ("first", "second"):
        for i in range(4):
            assert replayed(key, waits, torch.full((2,), float(i)), held=[moved]).tolist() == [2.0 * i * i] * 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("warning: train.capture:") and "not permitted when stream" in said
    assert len(graphs) == 1 and not replayed.graphs
    for _ in range(3):
        replayed("third", fn, torch.ones(2))
    assert fn.calls == 3 and len(graphs) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_calls_before_the_capture_leave_no_trace(graphs: list[FakeGraph], fails: bool) -> None:
    count = torch.zeros(1)

    def counting(x: Tensor) -> Tensor:
        count.add_(1)
        return x * float(x.sum()) if fails else x + count

    replayed = Replay()
    for i in range(1, 6):
        replayed("key", counting, torch.ones(1), held=[count])
        assert count.item() == i


def test_a_copy_begins_without_graphs(graphs: list[FakeGraph]) -> None:
    replayed, fn = Replay(), Counted()
    for _ in range(3):
        replayed("key", fn, torch.ones(2))
    copied = deepcopy(replayed)
    assert replayed.graphs and not copied.graphs and not copied.seen


class TestFingerprint:
    def network(self) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))

    def test_an_update_and_a_loaded_state_leave_it(self) -> None:
        network = self.network()
        before = fingerprint(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        network(torch.rand(2, 1, 4, 4)).sum().backward()
        optimizer.step()
        network.load_state_dict(self.network().state_dict())
        assert fingerprint(network) == before and hash(before)

    @pytest.mark.parametrize("change", ["eval", "untracked", "statistics", "data", "layout", "attribute", "module"])
    def test_what_a_graph_would_miss_changes_it(self, change: str) -> None:
        network = self.network()
        norm, last = network[1], network[3]
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(last, nn.Linear)
        before, kept = fingerprint(network), dict(network.state_dict())  # their places are not given to others
        if change == "eval":
            network.eval()
        elif change == "untracked":
            norm.track_running_stats = False
        elif change == "statistics":
            norm.running_mean, norm.running_var = torch.zeros(2), torch.ones(2)
        elif change == "data":
            last.weight.data = last.weight.data.clone()
        elif change == "layout":
            network.to(memory_format=torch.channels_last)
            last.weight.data = last.weight.data.t().contiguous().t()
        elif change == "attribute":
            norm.momentum = 0.5
        else:
            network[2] = nn.Flatten()
        assert fingerprint(network) != before and kept

    def test_hooks_are_seen(self) -> None:
        network = self.network()
        assert not has_hooks(network)
        hook = network[1].register_forward_pre_hook(lambda module, inputs: None)
        assert has_hooks(network)
        hook.remove()
        network[3].register_forward_hook(lambda module, inputs, output: output)
        assert has_hooks(network)


def test_tensors_of_the_cpu_are_not_on_cuda() -> None:
    assert not replay.on_cuda() and not replay.on_cuda(torch.ones(1))
