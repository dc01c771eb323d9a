"""Methods that say something of logits say the same of a network and of an ensemble of its equals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from atbench.methods import Method
from atbench.methods.alp import Alp
from atbench.methods.clp import Clp
from atbench.methods.fgsm_mep import FgsmMep
from atbench.methods.lbgat import Lbgat
from atbench.methods.rlfat import Rlfat
from atbench.models import Ensemble
from tests.support import worlds

MAKE: dict[str, Callable[[nn.Module], Method]] = {
    "lsq": lambda model: Clp(model, worlds.attack(), penalty="norms"),
    "squares": lambda model: Clp(model, worlds.attack(), penalty="squares"),
    "clp": lambda model: Clp(model, worlds.attack(), penalty="pairs"),
    "alp": lambda model: Alp(model, worlds.attack()),
    "fgsm_mep": lambda model: FgsmMep(model, worlds.attack()),
    "lbgat": lambda model: Lbgat(model, worlds.attack(), lambda changes: worlds.cnn(seed=7), {}),
    "rlfat": lambda model: Rlfat(model, worlds.attack()),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_loss_of_logits_is_one_of_the_members_logits(name: str) -> None:
    losses = []
    for model in (worlds.cnn(), Ensemble([worlds.cnn(), worlds.cnn()])):
        given = worlds.data()
        method = MAKE[name](model)
        method.setup(given)
        worlds.start(method, given)
        losses.append(method.loss(method.perturb(given.batch(0, 0))).total)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
