"""The watch for catastrophic overfitting: what it measures, when it speaks, and what becomes of training."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from atbench.config import validate
from atbench.errors import ConfigError, Interrupted
from atbench.evaluation import PGDConfig
from atbench.methods.base import Clock, Keep, Restore, Stop
from atbench.training import CollapseWatch, Guard, Trainer, World
from atbench.training.validation import Validation
from tests.support import worlds
from tests.support.configs import resolved
from tests.support.contract import Log, trainer_of

ALONE = World(torch.device("cpu"))
#: Four epochs of four steps, measured at every second one.
WORDS = ("attack.steps=1", "attack.step_size=0.2", "train.epochs=4", "guard.every=2", "guard.n=16", "guard.steps=2")


def measures(monkeypatch: pytest.MonkeyPatch, pairs: Iterable[tuple[float, float]]) -> None:
    """Let the watch find these accuracies under (FGSM, PGD), one pair a measurement."""
    found = iter([accuracy for fgsm, pgd in pairs for accuracy in (pgd, fgsm)])
    monkeypatch.setattr(Validation, "accuracy", lambda self, network, **changes: next(found))


def trained(log: Log, *words: str, stop_after: int | None = None) -> Trainer:
    trainer = trainer_of("pgd_at", ALONE, log, *WORDS, *words, stop_after=stop_after)
    assert trainer.data.steps == 4
    return trainer


def test_it_measures_both_attacks_on_the_same_images_and_disturbs_nothing() -> None:
    watched, plain = Log(), Log()
    ours, theirs = trained(watched), trained(plain, "guard.collapse=null")
    ours.fit()
    theirs.fit()
    assert [row["step"] for row in watched.watch] == [2, 4, 6, 8, 10, 12, 14, 16] and plain.watch == []
    assert worlds.same(ours.method.state_dict(), theirs.method.state_dict())
    last, network = watched.watch[-1], ours.method.model
    threat = PGDConfig("linf", ours.method.attack.eps, ours.watch.threat.step_size, 2)
    measured = Validation(ours.data, threat, 16, ALONE)
    assert last["pgd"] == measured.accuracy(network) and (last["k"], last["n"]) == (2, 16)
    held = measured.held
    x, y = held.floats(torch.arange(len(held)), torch.float32).requires_grad_(), held.y
    network.eval()
    grad = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), y, reduction="sum"), x)[0]
    x_adv = (x + threat.eps * grad.sign()).clamp(0, 1)
    right = (network(x).argmax(1) == y) & (network(x_adv).argmax(1) == y)
    assert last["fgsm"] == float(right.double().mean())
    assert last["highest"] == max(row["pgd"] for row in watched.watch)


def test_only_single_step_training_is_watched() -> None:
    assert trained(Log()).watch is not None and trained(Log(), "attack.steps=2").watch is None
    for method in ("fgsm_mep", "free_at"):  # their single step is not the attack's
        assert trainer_of(method, ALONE, Log(), "attack.steps=10").watch is not None


def test_a_collapse_is_pgd_falling_while_fgsm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        ((0.3, 0.1), False),  # the beginning
        ((0.7, 0.6), False),
        ((0.3, 0.29), False),  # both fell: no collapse of this kind
        ((0.59, 0.3), False),  # apart by less than 0.3
        ((0.61, 0.31), False),  # more than half of the highest
        ((0.9, 0.1), True),
        ((0.95, 0.0), False),  # the same one
        ((0.7, 0.5), False),  # over
        ((0.8, 0.2), True),
    ]
    measures(monkeypatch, (pair for pair, _ in found))
    watch = CollapseWatch(worlds.data(), PGDConfig("linf", 0.1, 0.02, 10), Guard(every=1), ALONE)
    clock, said = Clock(epochs=1, steps=20), []
    for step in range(len(found)):
        clock.step = step + 1
        measured = watch.after_step(worlds.cnn(), clock)
        assert measured is not None and measured[1] is None, "a warning changes nothing"
        said.append("collapse" in measured[0])
    assert said == [collapse for _, collapse in found]
    clock.step, watch.guard = 7, Guard(every=2)
    assert watch.after_step(worlds.cnn(), clock) is None


@pytest.mark.parametrize(("action", "kind"), [("stop", Stop), ("rollback", Restore)])
def test_the_first_measurement_has_nothing_to_go_back_to(
    monkeypatch: pytest.MonkeyPatch, action: str, kind: type
) -> None:
    measures(monkeypatch, [(0.9, 0.0), (0.6, 0.5), (0.9, 0.0)])
    watch = CollapseWatch(worlds.data(), PGDConfig("linf", 0.1, 0.02, 10), Guard(action, every=1), ALONE)
    decisions = [watch.after_step(worlds.cnn(), Clock(steps=20, step=step)) for step in (1, 2, 3)]
    assert isinstance(decisions[0][1], Stop) == (action == "stop")
    assert decisions[1][1] == (Keep(watch.KEPT) if action == "rollback" else None)
    assert isinstance(decisions[2][1], kind)


def test_stop_ends_training_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    trainer = trained(log, "guard.collapse=stop")
    measures(monkeypatch, [(0.6, 0.5), (0.6, 0.5), (0.9, 0.0)])
    trainer.fit()
    assert [row["step"] for row in log.rows] == [4, 6] and log.watch[-1]["collapse"] == "stop"
    assert log.rows[-1]["stopped"] == "catastrophic overfitting at step 6" and log.rows[-1]["fraction"] == 6 / 16
    state = torch.load(io.BytesIO(log.saved["last"]), weights_only=True)
    again = trained(Log(), "guard.collapse=stop")
    again.load(state)
    again.fit()
    assert worlds.same(again.method.state_dict(), trainer.method.state_dict()), "it is over"


def test_rollback_goes_on_from_the_last_healthy_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen = Log(), []
    trainer = trained(log, "guard.collapse=rollback")
    measures(monkeypatch, [(0.6, 0.5), (0.7, 0.6), (0.9, 0.0), *[(0.6, 0.5)] * 5])
    inner = trainer._watch_collapse

    def noted() -> None:
        before = worlds.snapshot(trainer.method)
        inner()
        seen.append((before, worlds.snapshot(trainer.method)))

    monkeypatch.setattr(trainer, "_watch_collapse", noted)
    trainer.fit()
    assert len(seen) == 16 and len(log.rows) == 4
    assert worlds.same(seen[5][1], seen[3][0]) and not worlds.same(seen[5][0], seen[5][1])
    assert all(worlds.same(*pair) for place, pair in enumerate(seen) if place != 5)


def test_a_resumed_run_watches_as_if_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at step 5: the weights to go back to, the highest accuracy and a known collapse are in the state."""
    script = [(0.6, 0.5), (0.9, 0.0), (0.95, 0.0), (0.6, 0.5), (0.9, 0.1), *[(0.6, 0.5)] * 3]
    whole, broken = Log(), Log()
    undisturbed = trained(whole, "guard.collapse=rollback")
    measures(monkeypatch, script)
    undisturbed.fit()
    first = trained(broken, "guard.collapse=rollback", stop_after=5)
    measures(monkeypatch, script)
    with pytest.raises(Interrupted):
        first.fit()
    resumed = trained(broken, "guard.collapse=rollback")
    resumed.load(torch.load(io.BytesIO(broken.saved["last"]), weights_only=True))
    resumed.fit()
    assert whole.watch == broken.watch and worlds.same(undisturbed.method.state_dict(), resumed.method.state_dict())


@pytest.mark.parametrize("word", ["guard.collapse=explode", "guard.every=0", "guard.n=0", "guard.steps=0"])
def test_settings_that_mean_nothing_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0].replace(".", r"\.")):
        validate.validate_config(resolved(word))


def settings() -> dict[str, Any]:
    return dict(resolved().guard)


def test_the_defaults_are_those_of_the_configuration() -> None:
    assert settings() == vars(Guard())
