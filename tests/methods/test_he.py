"""HE: five bases in one option, a margin in the loss that is minimised alone, class weights of unit length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import ConfigCompositionException
from torch import nn

from atbench.config.compose import compose
from atbench.config.hydra_errors import composition_error
from atbench.config.registry import conf_dir, options
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.alp import Alp
from atbench.methods.fast_at import FastAt
from atbench.methods.free_at import FreeAt
from atbench.methods.pgd_at import PgdAt
from atbench.methods.risk import MarginRisk
from atbench.methods.trades import Trades
from atbench.models import Hypersphere
from atbench.training import Trainer
from tests.support import reference, worlds
from tests.support.contract import ALONE, Log, configuration, trainer_of

F64 = torch.float64
#: Class, s and m of the authors.
BASES: dict[str, tuple[type, float, float]] = {
    "pgd_at": (PgdAt, 10.0, 0.2),
    "trades": (Trades, 15.0, 0.2),
    "alp": (Alp, 20.0, 0.3),
    "free_at": (FreeAt, 10.0, 0.2),
    "fast_at": (FastAt, 10.0, 0.2),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def trainer(base: str, *words: str) -> Trainer:
    made = trainer_of("he", ALONE, Log(), f"base={base}", *words)
    made.method.train()
    return made


def rows(network: nn.Module) -> nn.Parameter:
    """The class weights of a network's head."""
    (head,) = (module for module in network.modules() if isinstance(module, Hypersphere))
    return head.weight


def first(made: Trainer) -> Batch:
    """The first batch, perturbed as its method's first round has it."""
    turn = next(iter(made.method.inner_updates(made.data.batch(0, 0))))
    return made.method.perturb(turn.batch) if turn.perturb else turn.batch


def with_margin(cosines: torch.Tensor, y: torch.Tensor, s: float, m: float) -> float:
    """The mean of −log e^{s(cos θ_y − m)} / (e^{s(cos θ_y − m)} + Σ_{k≠y} e^{s·cos θ_k}), in plain Python."""
    rows = cosines.tolist()
    for row, label in zip(rows, y.tolist(), strict=True):
        row[label] -= m
    return reference.mean(reference.ce(s * torch.tensor(rows, dtype=F64), y))


def test_every_base_is_an_option() -> None:
    assert set(options("base", [conf_dir()])) == set(BASES)


def test_another_method_has_no_base() -> None:
    words = ["method=trades", "base=alp"]
    with pytest.raises(ConfigCompositionException) as refused:
        compose("train", words)
    said = str(composition_error(refused.value, words, lambda group: options(group, [conf_dir()])))
    assert "base: alp" in said and "nothing that was chosen takes this group" in said and "method=he" in said


@pytest.mark.parametrize("base", BASES)
def test_a_base_is_its_method_with_the_authors_scale_and_margin(base: str) -> None:
    kind, s, m = BASES[base]
    made = trainer(base)
    heads = [module for module in made.method.model.modules() if isinstance(module, Hypersphere)]
    assert type(made.method) is kind and [head.scale for head in heads] == [s]
    assert made.method.risk.margin == pytest.approx(s * m)
    he, alone = configuration("he", f"base={base}"), configuration(base)
    assert he.method.about.name == "he" and he.method.about.get("attack") == alone.method.about.get("attack")
    changed = {"start": "gaussian"} if base in ("pgd_at", "alp") else {}
    assert he.attack == {**alone.attack, **changed}
    settings = {key: value for key, value in alone.method.items() if key != "about"}
    if base == "alp":
        settings["weight"] = 0.5 / s**2
    assert {key: value for key, value in he.method.items() if key != "about"} == settings


@pytest.mark.parametrize("base", BASES)
def test_the_loss_is_the_authors_formula(base: str) -> None:
    _, s, m = BASES[base]
    made = trainer(base)
    method, batch = made.method, first(made)
    if base == "free_at":
        batch = batch.with_adv(batch.x)  # δ is 0 at first
    clean, adversarial = (method.model(x).detach() / s for x in (batch.x, batch.x_adv))
    assert torch.cat([clean, adversarial]).abs().max() <= 1 + 1e-12
    wanted = with_margin(adversarial, batch.y, s, m)
    if base == "trades":
        wanted = with_margin(clean, batch.y, s, m) + 6 * reference.mean(reference.kl(s * clean, s * adversarial))
    if base == "alp":
        wanted = (with_margin(clean, batch.y, s, m) + wanted) / 2 + 0.5 * float((clean - adversarial).square().mean())
    assert method.loss(batch).total.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("base", ["pgd_at", "trades", "alp", "fast_at"])
def test_the_attack_has_the_scale_and_no_margin(base: str) -> None:
    ours, other = trainer(base), trainer(base, "train.margin=0")
    x_adv = first(ours).x_adv
    assert torch.equal(x_adv, first(other).x_adv) and not torch.equal(x_adv, first(ours).x)
    assert not torch.equal(x_adv, first(trainer(base, "model.head_scale=1", "train.margin=0")).x_adv)


def test_free_at_moves_the_image_with_the_margin_in_the_loss() -> None:
    """Its one backward pass is of the loss that is minimised."""
    made = trainer("free_at")
    batch = first(made)
    made.method.loss(batch).total.backward()
    x = batch.x.clone().requires_grad_()
    raised = made.method.model(x) - 10 * 0.2 * F.one_hot(batch.y, 10)
    (wanted,) = torch.autograd.grad(F.cross_entropy(raised, batch.y), x)
    torch.testing.assert_close(batch.aux["source"].grad, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_scale_of_1_and_no_margin_are_cross_entropy_to_the_bit(smoothing: float) -> None:
    rng = torch.Generator().manual_seed(0)
    cosines, y = 2 * torch.rand((8, 5), generator=rng) - 1, torch.arange(8) % 5
    risk, plain = MarginRisk(0.0), nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
    risk.label_smoothing = smoothing
    soft = F.one_hot(y, 5) * 0.7 + 0.06
    assert torch.equal(risk(cosines, y), plain(cosines, y)) and torch.equal(risk(cosines, soft), plain(cosines, soft))


def test_a_margin_only_raises_the_loss_and_is_shared_out_over_soft_labels() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, y = 15 * (2 * torch.rand((8, 5), generator=rng, dtype=F64) - 1), torch.arange(8) % 5
    risk = MarginRisk(3.0)
    assert (risk(logits, y) > F.cross_entropy(logits, y, reduction="none")).all()
    hard = F.one_hot(y, 5).double()
    torch.testing.assert_close(risk(logits, hard), risk(logits, y), rtol=1e-12, atol=0)
    soft = 0.75 * hard + 0.25 * hard.roll(1, dims=1)
    lowered = (logits - 3 * soft).log_softmax(dim=1)
    torch.testing.assert_close(risk(logits, soft), -(soft * lowered).sum(dim=1), rtol=1e-12, atol=0)


def test_two_steps_are_those_of_a_linear_layer_whose_rows_are_unit_before_each() -> None:
    """One forward or several: weight decay, momentum and the gradient's radial part act on unit rows."""
    network = worlds.cnn(head="hypersphere", head_scale=10.0)
    method, given = Trades(network, worlds.attack(start="gaussian"), 6.0), worlds.data()
    method.risk = MarginRisk(2.0)
    worlds.start(method, given)
    weight = rows(network)
    theirs, other = copy.deepcopy(network), nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    other.weight.data.copy_(weight.detach())
    kept: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}
    ours = torch.optim.SGD(network.parameters(), **kept)
    reset = torch.optim.SGD([*theirs.stages.parameters(), other.weight], **kept)
    for step in range(2):
        batch = method.perturb(given.batch(0, step))
        ours.zero_grad()
        method.loss(batch).total.backward()
        ours.step()

        other.weight.data = F.normalize(other.weight.data, dim=1)
        clean, adversarial = (10 * other(F.normalize(theirs.features(x), dim=1)) for x in (batch.x, batch.x_adv))
        kl = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
        reset.zero_grad()
        (F.cross_entropy(clean - 2 * F.one_hot(batch.y, 3), batch.y) + 6 * kl).backward()
        assert other.weight.grad is not None
        radial = (other.weight.grad * other.weight).sum(dim=1)
        assert radial.abs().max() > 1e-3  # else W/‖W‖ would have the same gradient
        reset.step()
        torch.testing.assert_close(weight, other.weight, rtol=1e-10, atol=1e-12)
    assert (weight.norm(dim=1) - 1).abs().max() > 1e-3  # until the next forward of an update


def test_attacks_and_evaluations_leave_the_weights_as_they_are() -> None:
    made = trainer("fast_at")  # its attack runs in train mode
    weight = rows(made.method.model)
    before = weight.detach().clone()
    batch = first(made)
    made.method.model.eval()(batch.x)
    with torch.no_grad():
        made.method.model.train()(batch.x)
    assert torch.equal(weight, before)
    made.method.loss(batch)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(10, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("words", [("model.head=linear",), ("base=trades", "model.head=linear")])
def test_a_margin_without_cosines_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"train\.margin: 0\.2 .*; add model\.head=hypersphere"):
        trainer_of("he", ALONE, Log(), *words)


def test_any_method_takes_the_margin_and_an_ensemble_has_one_scale() -> None:
    words = ("model.head=hypersphere", "model.head_scale=4", "train.margin=0.5")
    assert trainer_of("mart", ALONE, Log(), *words).method.risk.margin == 2.0
    assert trainer_of("pgd_at", ALONE, Log(), *words, "model.members=2").method.risk.margin == 2.0
