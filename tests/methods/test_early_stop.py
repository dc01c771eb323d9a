"""Early stopping: the clean pass, the patience, and that both survive a resume."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from atbench.config.instantiate import build
from atbench.data import TrainData
from atbench.errors import Interrupted
from atbench.methods import Report, Stop
from atbench.methods.early_stop import EarlyStop
from atbench.methods.pgd_at import PgdAt
from atbench.training import World
from tests.support import worlds
from tests.support.configs import resolved
from tests.support.contract import Log, trainer_of

ALONE = World(torch.device("cpu"))


def make(given: TrainData, norm: str = "none", **options: Any) -> EarlyStop:
    method = EarlyStop(worlds.cnn(norm=norm), worlds.attack(bn="train"), **options)
    worlds.start(method, given)
    return method


def play(method: EarlyStop, curve: list[float], first: int = 1) -> int | None:
    """The epoch after which a made-up validation curve ends training."""
    for epoch, value in enumerate(curve, start=first):
        decision = method.on_epoch(Report({"epoch": epoch, "val": {"pgd": value}}, lambda **_: 0.0))
        if decision is not None:
            assert isinstance(decision, Stop)
            return epoch
    return None


def test_after_each_update_statistics_see_the_clean_batch_through_the_new_weights() -> None:
    given = worlds.data()
    method, other = make(given, "batch"), PgdAt(worlds.cnn(norm="batch"), worlds.attack(bn="train"))
    for each in (method, other):
        worlds.steps(each, given, 1)
    norm, plain, stem = method.model.stages[1][0], other.model.stages[1][0], method.model.stages[0]
    with torch.no_grad():
        mean = stem(method.model.normalise(given.batch(0, 0).x)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.9 * plain.running_mean + 0.1 * mean, rtol=0, atol=1e-12)
    # k forwards of the attack and one of the update, and one more.
    assert (int(plain.num_batches_tracked), int(norm.num_batches_tracked)) == (4, 5)
    assert all(module.training for module in method.modules())


@pytest.mark.parametrize(("norm", "clean_pass"), [("batch", False), ("none", True)])
def test_but_for_the_clean_pass_it_is_pgd_at_to_the_bit(norm: str, clean_pass: bool) -> None:
    given = worlds.data()
    method = make(given, norm, clean_pass=clean_pass)
    other = PgdAt(worlds.cnn(norm=norm), worlds.attack(bn="train"))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method.model), worlds.snapshot(other.model))


def test_the_clean_pass_leaves_no_gradient_and_is_paid_for() -> None:
    given = worlds.data()
    method = make(given, "batch")
    method.after_update(given.batch(0, 0))
    assert all(parameter.grad is None for parameter in method.parameters())
    assert (method.forward_cost(10), make(given, clean_pass=False).forward_cost(10)) == (24, 23)


def test_training_ends_after_exactly_the_patience() -> None:
    given = worlds.data()
    method = make(given, patience=0.1)
    method.clock.epochs = 30
    assert play(method, [0.1, 0.3, 0.3, 0.2, 0.4, 0.4, 0.4, 0.4, 0.9]) == 8, "three epochs after the best, ties apart"


def test_the_patience_is_rounded_up_to_whole_epochs() -> None:
    given = worlds.data()
    for epochs, patience, end in ((300, 10 / 300, 11), (10, 0.11, 3), (10, 0.01, 2), (4, 1.0, None)):
        method = make(given, patience=patience)
        method.clock.epochs = epochs
        assert play(method, [0.5] * min(epochs, 20)) == end, (epochs, patience)


def test_without_patience_it_never_ends() -> None:
    given = worlds.data()
    assert play(make(given), [0.5] * 50) is None


def test_epochs_that_were_not_measured_count_but_decide_nothing() -> None:
    given = worlds.data()
    method = make(given, patience=0.2)
    method.clock.epochs = 10
    assert play(method, [0.5]) is None
    assert method.on_epoch(Report({"epoch": 3}, lambda **_: 0.0)) is None
    assert play(method, [0.6], first=3) is None
    assert play(method, [0.6], first=5) == 5


def test_patience_survives_a_resume() -> None:
    given = worlds.data()
    method, resumed = make(given, patience=0.5), make(given, patience=0.5)
    method.clock.epochs = resumed.clock.epochs = 10
    assert play(method, [0.5, 0.6, 0.6]) is None
    resumed.load_state_dict(method.state_dict())
    assert play(method, [0.6] * 9, first=4) == play(resumed, [0.6] * 9, first=4) == 7
    worlds.check_resume(lambda: make(given, "batch"), given)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_trainer_stops_and_keeps_the_best_epoch(interrupted: bool) -> None:
    """Weights that do not move: the first epoch stays the best, and the second after it is the last."""
    words = ("train.epochs=6", "train.optimizer.lr=0", "train.optimizer.weight_decay=0", "method.patience=2/6")
    log = Log()
    trainer = trainer_of("early_stop", ALONE, log, *words, stop_after=5 if interrupted else None)
    if interrupted:
        with pytest.raises(Interrupted):
            trainer.fit()
        trainer = trainer_of("early_stop", ALONE, log, *words)
        trainer.load(torch.load(io.BytesIO(log.saved["last"]), weights_only=True))
    trainer.fit()
    assert [row["epoch"] for row in log.rows] == [1, 2, 3]
    assert log.rows[-1]["stopped"] == "held-out robust accuracy has not risen since epoch 1"
    best = torch.load(io.BytesIO(log.saved["best"]), weights_only=True)["best"]
    assert best["epoch"] == 1 and best["score"] >= log.rows[-1]["val"]["pgd"]


def test_best_and_last_are_both_evaluated_and_the_papers_rate_drops_at_a_half() -> None:
    cfg = resolved("experiment=paper/early_stop")
    assert list(cfg.eval.checkpoints) == ["best", "last"]
    assert cfg.attack.bn == "train" and cfg.method.clean_pass
    schedule = build(cfg.train.schedule, "train.schedule")
    assert schedule(99 / 200) == 1 and schedule(0.5) == pytest.approx(0.1) and schedule(0.75) == pytest.approx(0.01)


def test_contract() -> None:
    given = worlds.data()
    batch = worlds.check_pure(make(given), given.batch(0, 0))
    assert worlds.legal(make(given).attack, batch.x, batch.x_adv, 0.1)
