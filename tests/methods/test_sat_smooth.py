"""SAT: PGD-AT with smooth activations, each by a setting, and ReLU as its limit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atbench.methods.pgd_at import PgdAt
from atbench.models.activations import ACTIVATIONS, activation_factory, activation_modules
from tests.support.configs import resolved
from tests.support.contract import ALONE, Log, trainer_of

SMOOTH = sorted(set(ACTIVATIONS) - {"relu", "leaky_relu"})


@pytest.mark.parametrize("name", SMOOTH)
def test_every_activation_of_the_network_is_the_chosen_one(name: str) -> None:
    method = trainer_of("sat_smooth", ALONE, Log(), f"model.activation={name}").method
    kinds = {type(module) for module in activation_modules(method.model)}
    assert type(method) is PgdAt and kinds == {type(activation_factory(name)())}
    assert not any(isinstance(module, (nn.ReLU, nn.LeakyReLU)) for module in method.modules())


def test_with_relu_it_is_pgd_at_to_the_bit() -> None:
    states = []
    for words in (("sat_smooth", "model.activation=relu"), ("pgd_at",)):
        trainer = trainer_of(words[0], ALONE, Log(), "train.epochs=1", *words[1:])
        trainer.fit()
        states.append(trainer.method.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_it_adds_an_activation_and_no_setting_of_the_attack() -> None:
    ours, plain = resolved("method=sat_smooth"), resolved("method=pgd_at")
    assert ours.attack == plain.attack and ours.train == plain.train
    assert ours.model == {**plain.model, "activation": "silu"}


def test_weight_decay_spares_the_learned_scalars_as_the_authors_do() -> None:
    words = ("model.activation=smooth_relu", "train.weight_decay_on=weights")
    trainer = trainer_of("sat_smooth", ALONE, Log(), *words)
    roots = [module.root for module in activation_modules(trainer.method.model)]
    assert len(roots) == 4 and len({id(root) for root in roots}) == 4
    decayed = {
        id(parameter)
        for group in trainer.groups[0].optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert decayed and not decayed & {id(root) for root in roots}


def test_mish_and_gelu_by_tanh_are_the_authors_formulas() -> None:
    for x in (-3.0, -0.5, 0.0, 0.5, 3.0):
        value = torch.tensor(x, dtype=torch.float64)
        mish = x * math.tanh(math.log1p(math.exp(x)))
        gelu = x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        assert activation_factory("mish")()(value).item() == pytest.approx(mish, abs=1e-14)
        assert activation_factory("gelu_tanh")()(value).item() == pytest.approx(gelu, abs=1e-14)
