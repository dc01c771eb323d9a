"""foolbox's attacks behind our contract: found by name, counted, seeded, and equal to ours where they are the same."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atbench.attacks import AscentAttack, GradientAttack, ball
from atbench.attacks.foolbox import Foolbox
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_its_pgd_is_ours(norm: str) -> None:
    network = Linear()
    x, y = images(network)
    # Below the nearest boundary: ours stops at the first mistake, theirs goes on.
    eps = 0.99 * float(distance(network, x, y, norm).min())
    ours = AscentAttack(GradientAttack(norm, eps, 7, eps / 3, start="zero"))
    theirs = Foolbox(norm, eps, "PGD", 7, {"random_start": False, "abs_stepsize": eps / 3})
    answers = [attack(Aim(network), x, y, draws(len(x))) for attack in (ours, theirs)]
    assert (ball(norm).norm(answers[0] - x) > 0.9 * eps).all()
    torch.testing.assert_close(*answers, rtol=0, atol=1e-9)


def test_its_passes_are_counted() -> None:
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    Foolbox("linf", 0.1, "PGD", 7)(aim, x, y, draws(len(x)))
    assert aim.passes == aim.gradients == 7 * len(x)


@pytest.mark.parametrize(
    ("norm", "name", "kind"),
    [
        ("linf", "PGD", "LinfProjectedGradientDescentAttack"),
        ("l1", "PGD", "L1ProjectedGradientDescentAttack"),
        ("l2", "L2PGD", "L2ProjectedGradientDescentAttack"),
        ("l2", "projectedgradientdescent", "L2ProjectedGradientDescentAttack"),
        ("linf", "FGSM", "LinfFastGradientAttack"),
        ("l2", "FGM", "L2FastGradientAttack"),
        ("linf", "FMN", "LInfFMNAttack"),
        ("l2", "DeepFool", "L2DeepFoolAttack"),
        ("l2", "CarliniWagner", "L2CarliniWagnerAttack"),
        ("l1", "EAD", "EADAttack"),
        ("linf", "AdditiveUniformNoise", "LinfAdditiveUniformNoiseAttack"),
        ("linf", "HopSkipJump", "HopSkipJumpAttack"),
        ("l1", "InversionAttack", "InversionAttack"),
    ],
)
def test_names_are_understood(norm: str, name: str, kind: str) -> None:
    attack = Foolbox(norm, 0.1, name)
    assert type(attack.attack).__name__ == kind
    assert attack.attack.distance.p == ball(norm).p


def test_what_an_attack_is_follows_its_kind() -> None:
    found = {
        name: (attack.minimal, attack.access)
        for name in ("PGD", "DeepFool", "HopSkipJump", "AdditiveUniformNoise")
        for attack in [Foolbox("linf", 0.1, name)]
    }
    assert found == {
        "PGD": (False, "gradient"),
        "DeepFool": (True, "gradient"),
        "HopSkipJump": (True, "queries"),
        "AdditiveUniformNoise": (False, "noise"),
    }


@pytest.mark.parametrize(
    ("norm", "given", "message"),
    [
        ("linf", {"name": "PDG"}, r"attack\.name: PDG .* did you mean 'PGD'"),
        ("linf", {"name": "L2PGD"}, r"no attack of this name for linf; did you mean 'PGD'"),
        ("l1", {"name": "DeepFool"}, r"no attack of this name for l1"),
        ("linf", {"name": "GenAttack"}, r"no attack of this name for linf"),
        ("linf", {"name": "Attack"}, r"no attack of this name for linf"),
        ("linf", {"name": "PGD", "options": {"abs_stepsiz": 1}}, r"options\.abs_stepsiz.* did you mean 'abs_stepsize'"),
        ("linf", {"name": "PGD", "options": {"abs_stepsize": "far"}}, r"abs_stepsize: 'far' .* wants a number"),
        ("linf", {"name": "FGSM", "steps": 3}, r"attack\.steps: 3 .* takes no 'steps'"),
        ("l2", {"name": "VirtualAdversarialAttack"}, r"attack\.steps: nothing .* needs 'steps'"),
    ],
)
def test_mistakes_get_one_line(norm: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Foolbox(norm, 0.1, **given)


def test_without_foolbox_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ConfigError, match=r"pip install atbench\[foolbox\]"):
        Foolbox("linf", 0.1, "PGD")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_minimal_attack_goes_as_far_as_it_must(norm: str) -> None:
    """DeepFool on a linear network ends its overshoot of 2 % and a little beyond the boundary, whatever eps is."""
    network = Linear()
    x, y = images(network)
    far = distance(network, x, y, norm)
    x_adv = Foolbox(norm, 1e-6, "DeepFool")(Aim(network), x, y, draws(len(x)))
    assert (network(x_adv).argmax(dim=1) != y).all()
    reached = ball(norm).norm(x_adv - x)
    assert (reached >= far * (1 - 1e-9)).all() and (reached <= far * 1.02 + 5e-4).all()


def test_random_attacks_are_seeded_by_the_evaluation_and_leave_the_global_state() -> None:
    network = Linear()
    x, y = images(network)
    answers = [
        Foolbox("linf", 0.05, "AdditiveUniformNoise")(Aim(network), x, y, draws(len(x), seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])

    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    pointwise = [Foolbox("l2", 1.0, "Pointwise")(Aim(network), x[:1], y[:1], draws(1)) for _ in range(2)]
    assert torch.equal(*pointwise) and (np.random.get_state()[1] == state).all()
    assert (pointwise[0] != x[:1]).any()


def test_one_image_without_a_start_does_not_cost_the_others_theirs() -> None:
    """foolbox's decision-based attacks refuse the whole batch for one image that no noise breaks."""

    class Refusing:
        def run(self, model: Any, x: Tensor, criterion: Any) -> Tensor:
            failed = int((x[:, 0, 0, 0] == 0).sum())
            if failed:
                raise ValueError(f"init_attack failed for {failed} of {len(x)} inputs")
            return torch.ones_like(x)

    network = Linear()
    x, y = images(network, n=7)
    x[[1, 4], 0, 0, 0] = 0
    attack = Foolbox("l2", 1.0, "HopSkipJump")
    attack.attack = Refusing()
    x_adv = attack(Aim(network), x, y, draws(7))
    kept = torch.tensor([False, True, False, False, True, False, False])
    assert torch.equal(x_adv[kept], x[kept]) and (x_adv[~kept] == 1).all()


def test_what_is_no_number_is_no_answer() -> None:
    class Lost:
        def run(self, model: Any, x: Tensor, criterion: Any, epsilon: float) -> Tensor:
            return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 1, torch.nan, x + epsilon)

    network = Linear()
    x, y = images(network, n=3)
    attack = Foolbox("linf", 0.01, "PGD")
    attack.attack = Lost()
    x_adv = attack(Aim(network), x, y, draws(3))
    assert torch.equal(x_adv[1], x[1]) and not torch.equal(x_adv[0], x[0])
