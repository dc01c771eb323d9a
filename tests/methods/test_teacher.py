"""What robust distillation has in common: which teacher is asked for, and that nothing moves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atbench.errors import ConfigError
from atbench.methods import Stage
from atbench.methods.adaad import Adaad
from atbench.methods.ard import Ard
from atbench.methods.divergences import kl_divergence
from atbench.methods.iad import Iad
from atbench.methods.rslad import Rslad
from atbench.methods.teacher import Taught, robust_teacher, trust
from tests.support import pupils, reference, worlds

METHODS: list[tuple[type[Taught], dict[str, Any]]] = [
    (Ard, {"attack": {"bn": "train"}}),
    (Iad, {"attack": {"bn": "train"}, "robust": 0.5, "clean": 0.25, "begin": 0.0}),
    (Rslad, {"attack": {"start": "gaussian"}}),
    (Adaad, {"attack": {"start": "gaussian"}, "begin": 0.3}),
]


def test_it_is_trained_first_by_the_named_method_and_the_selected_epoch_counts() -> None:
    trades = robust_teacher(["model=wrn", "train.epochs=5"], (), "trades")
    words = ("attack.start=gaussian", "attack.bn=eval", "model=wrn", "train.epochs=5")
    node = {"_target_": "atbench.methods.trades.Trades"}
    assert trades == Stage(node, offset=1, overrides=words, best=True, teaches="robust")
    assert robust_teacher((), (), "pgd_at").method == {"_target_": "atbench.methods.pgd_at.PgdAt"}


def test_a_path_names_a_finished_one_and_a_model_makes_it_a_file_of_weights() -> None:
    assert robust_teacher("runs/R", (), "pgd_at") == Stage(checkpoint="runs/R", best=True, teaches="robust")
    file = robust_teacher("a.pt", "wrn", "pgd_at")
    assert file == Stage(checkpoint="a.pt", overrides=("model=wrn",), best=True, teaches="robust")
    words = ["model=wrn", "model.depth=10"]
    assert robust_teacher("a.pt", words, "pgd_at").overrides == tuple(words)
    with pytest.raises(ConfigError, match=r"method\.teacher_model: model=wrn .* write method\.teacher=FILE"):
        robust_teacher((), "wrn", "pgd_at")
    with pytest.raises(ConfigError, match=r"method\.teacher_method: mart .* use one of pgd_at, trades"):
        robust_teacher((), (), "mart")


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_nothing_moves_a_teacher(cls: type[Taught], options: dict[str, Any]) -> None:
    """Its statistics do not in an attack in train mode, nor its weights in an update; gradients never reach them."""
    given = worlds.data()
    method, _ = pupils.make(cls, given, norm="batch", **options)
    before = worlds.snapshot(method)
    worlds.steps(method, given, 4)
    after = worlds.snapshot(method)
    frozen = {name for name in after if "teacher" in name}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert worlds.same(method.teacher.network.state_dict(), pupils.teacher(norm="batch").state_dict())
    assert all(each.grad is None for each in method.teacher.parameters())


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_contract(cls: type[Taught], options: dict[str, Any]) -> None:
    given = worlds.data()
    method, batch = pupils.make(cls, given, **options)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: pupils.make(cls, given, **options)[0], given)


def test_the_cost_is_declared_where_a_teacher_costs_what_the_student_does() -> None:
    method, _ = pupils.make(Ard)
    assert method.forward_cost(10) == 25
    method.teacher.network = worlds.cnn(width=8)
    assert method.forward_cost(10) is None


def test_kl_and_trust_are_those_of_the_slow_reference() -> None:
    rng = torch.Generator().manual_seed(0)
    t, z = 3 * torch.randn(2, 6, 4, generator=rng, dtype=torch.float64)
    y = torch.arange(6) % 4
    assert kl_divergence(t, z, 2.5).tolist() == pytest.approx(reference.kl(t / 2.5, z / 2.5), abs=1e-12)
    omega = [row.softmax(dim=0)[label].item() ** 0.3 for row, label in zip(t, y, strict=True)]
    assert trust(t, y, 0.3).tolist() == pytest.approx(omega, abs=1e-12)
    assert torch.equal(trust(t, y, 0.0), torch.ones(6, dtype=torch.float64))
