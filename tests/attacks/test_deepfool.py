"""DeepFool: the closed form, which classes it looks at, what it costs, and foolbox's attack beside ours."""

from __future__ import annotations

import foolbox
import pytest
import torch

from atbench.attacks import ball
from atbench.attacks.min_norm.base import others
from atbench.attacks.min_norm.deepfool import DeepFool
from tests.support.targets import DUAL, Aim, Linear, distance, draws, images
from tests.support.trained import distances, trained

THEIRS = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("overshoot", [0.002, 0.02])
def test_one_step_to_the_boundary_of_a_linear_network(norm: str, overshoot: float) -> None:
    network = Linear()
    x, y = images(network)
    aim = Aim(network)
    x_adv = DeepFool(norm, 1.0, overshoot=overshoot)(aim, x, y, draws(len(x)))
    far = distance(network, x, y, norm)
    found = distances(network, x, x_adv, y, ball(norm).p)
    torch.testing.assert_close(found, (1 + overshoot) * (far + DeepFool.NUDGE), rtol=1e-6, atol=0)
    assert aim.passes == 2 * len(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_target_is_the_class_with_the_highest_other_logit(norm: str) -> None:
    network = Linear()
    x, y = images(network)
    logits = network(x).detach()
    rival = others(logits, y, 1).squeeze(1)
    weight = network.head.weight.detach()
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)
    far = gap / (weight[rival] - weight[y]).norm(p=DUAL[norm], dim=1)
    assert (far > 1.01 * distance(network, x, y, norm)).any()
    x_adv = DeepFool(norm, 1.0, targets=1)(Aim(network), x, y, draws(len(x)))
    torch.testing.assert_close(ball(norm).norm(x_adv - x), 1.02 * (far + DeepFool.NUDGE), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.slow
def test_beside_foolbox(norm: str) -> None:
    """The same algorithm with the same constants: each image at the same distance, and the broken ones cost nothing."""
    network, x, y = trained()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    x_theirs = THEIRS[norm](loss="logits").run(model, x, foolbox.criteria.Misclassification(y))
    aim = Aim(network)
    x_ours = DeepFool(norm, 1.0)(aim, x, y, draws(len(x)))
    ours, theirs = (distances(network, x, found, y, ball(norm).p) for found in (x_ours, x_theirs))
    assert ours.isfinite().all() and ours.median() <= 1.02 * theirs.median()
    assert ((ours / theirs - 1).abs() < 1e-3).sum() >= 95
    assert aim.passes < 20 * len(x)
