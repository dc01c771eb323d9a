"""CAT: chunks of a batch have their own strength, and stages follow the held-out accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods import Keep, Report, Restore
from atbench.methods.cat_curriculum import CatCurriculum
from atbench.methods.standard import Standard
from tests.support import worlds
from tests.support.contract import ALONE, Log, trainer_of


def make(given: TrainData, strength: int = 3, **options: Any) -> CatCurriculum:
    method = CatCurriculum(worlds.cnn(), worlds.attack(), **{"max_strength": 7, **options})
    method.setup(given)
    method.strength.fill_(strength)
    worlds.start(method, given)
    return method


def test_chunks_of_203_rows_for_strength_7() -> None:
    method = CatCurriculum(worlds.linear(), worlds.attack(), max_strength=7)
    method.strength.fill_(7)
    empty = torch.zeros(203, 1, 8, 8)
    rows = torch.arange(203)
    chunks = method._chunks(Batch(empty, rows, rows))
    assert chunks.bincount().tolist() == [25] * 7 + [28]
    assert torch.equal(chunks, chunks.sort().values)


def test_chunks_are_cut_from_the_joint_batch() -> None:
    method = CatCurriculum(worlds.linear(), worlds.attack(), max_strength=7)
    method.strength.fill_(2)
    rows = torch.arange(8)
    batch, method.clock.world, parts = Batch(torch.zeros(8, 1, 8, 8), rows, rows), 2, []
    for method.clock.rank in (0, 1):
        parts.append(method._chunks(batch))
    assert torch.cat(parts).bincount().tolist() == [5, 5, 6]


def test_each_chunk_has_its_own_number_of_steps_and_step_size() -> None:
    given = worlds.data()
    method = make(given)
    model, search = method.model, method.attack
    batch = method.perturb(given.batch(0, 0))
    rng = method.rng("length")
    begin = search.begin(batch.x, search.eps, method.rng("search"))
    lengths = [2 * 0.1 / j * rng.scalar(1, 10 / j) for j in (1, 2, 3)]
    for i in range(12):
        x, y, strength = batch.x[i : i + 1], batch.y[i : i + 1], i // 3
        x_adv = begin[i : i + 1] if strength else x
        for _ in range(strength):
            x_adv = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            moved = x_adv.detach() + lengths[strength - 1] * grad.sign()
            x_adv = torch.max(torch.min(moved, x + 0.1), x - 0.1).clip(0, 1)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-12)
    assert torch.equal(batch.x_adv[:3], batch.x[:3])
    expected = -torch.stack([model(batch.x_adv).log_softmax(dim=1)[i, batch.y[i]] for i in range(12)]).mean()
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-12)


def test_step_sizes_are_drawn_once_a_strength_and_a_batch() -> None:
    given = worlds.data()
    method = make(given)
    eps = method.attack.eps
    drawn = []
    for method.clock.step in range(50):
        lengths = method._lengths(20)
        assert lengths == method._lengths(20)
        drawn.append(torch.tensor(lengths))
    low, high = torch.stack(drawn).amin(dim=0), torch.stack(drawn).amax(dim=0)
    for j in range(1, 21):
        ends = sorted((1, 10 / j))
        assert 2 * eps / j * ends[0] <= low[j] + 1e-6
        assert high[j] <= 2 * eps / j * ends[1] + 1e-6
        if j != 10:  # u is 1 there
            assert low[j] < high[j]


def test_strength_0_for_ever_is_standard_training() -> None:
    given = worlds.data()
    method, standard = make(given, 0, max_strength=0), Standard(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(standard, given, 8)
    assert worlds.same(method.model.state_dict(), standard.model.state_dict())


def play(method: CatCurriculum, curve: Iterable[float], train: float = 0.95) -> list[tuple[int, str]]:
    """(strength, decision) after each epoch of a made-up validation curve."""
    history = []
    for value in curve:
        decision = method.on_epoch(Report({"train": {"accuracy": train}}, lambda value=value, **_: value))
        history.append((int(method.strength), type(decision).__name__))
    return history


def test_a_stage_ends_after_exactly_the_patience() -> None:
    given = worlds.data()
    method = make(given, 0)
    method.clock.epochs = 300
    history = play(method, [0.1, 0.3, *[0.3] * 10, 0.05, 0.2, *[0.1] * 9, 0.25, *[0.25] * 10])
    kept, quiet = "Keep", "NoneType"
    assert history == [
        *[(0, kept)] * 2,
        *[(0, quiet)] * 9,
        (1, "Restore"),
        *[(1, kept)] * 2,  # a lower accuracy than the last stage's is this stage's best
        *[(1, quiet)] * 9,
        (1, kept),
        *[(1, quiet)] * 9,
        (2, "Restore"),
    ]


def test_keep_and_restore_name_the_same_state() -> None:
    method = make(worlds.data(), 0)
    report = Report({"train": {"accuracy": 1.0}}, lambda **_: 0.5)
    assert method.on_epoch(report) == Keep("stage")
    assert method.on_epoch(report) == Restore("stage", ("model", "optimizer"))


def test_a_short_run_has_one_epoch_of_patience() -> None:
    method = make(worlds.data(), 0)
    method.clock.epochs = 20
    assert play(method, [0.5, 0.5, 0.4, 0.4])[1::2] == [(1, "Restore"), (2, "Restore")]


def test_a_stage_waits_for_the_accuracy_in_training() -> None:
    method = make(worlds.data(), 0)
    method.clock.epochs = 20
    assert play(method, [0.5] * 6, train=0.9)[-1] == (0, "NoneType")
    assert play(method, [0.5], train=0.91) == [(1, "Restore")]


def test_the_last_strength_stays() -> None:
    method = make(worlds.data(), 0, max_strength=2)
    method.clock.epochs = 20
    assert play(method, [0.5] * 8)[3:] == [(2, "Restore"), *[(2, "NoneType")] * 4]


def test_advance_by_training_accuracy_goes_back_to_nothing() -> None:
    method = make(worlds.data(), 0, max_strength=2, advance="training", threshold=0.95)
    assert play(method, [0.0], train=0.95) == [(0, "NoneType")]
    assert play(method, [0.0] * 4, train=0.96) == [(1, "NoneType"), *[(2, "NoneType")] * 3]


def test_a_row_has_the_strength_that_its_epoch_was_trained_at() -> None:
    log = Log()
    advance = ("method.advance=training", "method.threshold=0", "method.max_strength=2", "train.epochs=4")
    trainer_of("cat_curriculum", ALONE, log, *advance).fit()
    assert [row["method"] for row in log.rows] == [{"strength": strength} for strength in (0, 1, 2, 2)]


def test_validation_is_at_the_strength_of_the_stage() -> None:
    asked: list[dict[str, Any]] = []

    def validate(**changes: Any) -> float:
        asked.append(changes)
        return 0.5

    method = make(worlds.data(), 0)
    report = Report({"train": {"accuracy": 0.0}}, validate)
    method.on_epoch(report)
    method.strength.fill_(4)
    method.on_epoch(report)
    assert asked == [{"steps": 0, "start": "zero"}, {"steps": 4, "step_size": 2 * 0.1 / 4}]


def test_stages_survive_a_resume() -> None:
    given = worlds.data()
    method, resumed = make(given, 0), make(given, 0)
    method.clock.epochs = resumed.clock.epochs = 300
    play(method, [0.5, 0.4, 0.4])
    resumed.load_state_dict(method.state_dict())
    assert play(method, [0.4] * 9) == play(resumed, [0.4] * 9)
    assert int(resumed.strength) == 1


def test_settings_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.advance"):
        CatCurriculum(worlds.cnn(), worlds.attack(), max_strength=7, advance="never")
    with pytest.raises(ConfigError, match=r"method\.max_strength"):
        CatCurriculum(worlds.cnn(), worlds.attack(), max_strength=12).setup(worlds.data(batch_size=12))


def test_contract() -> None:
    given = worlds.data()
    method = make(given)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given), given)


@pytest.mark.parametrize("strength", [0, 1, 4])
def test_two_processes_are_one(strength: int) -> None:
    worlds.check_ranks(lambda given: make(given, strength))
