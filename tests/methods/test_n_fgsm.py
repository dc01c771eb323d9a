"""N-FGSM: the noise and the step in closed form, and the single steps that the same settings span."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atbench.attacks import GradientAttack
from atbench.config import validate
from atbench.config.instantiate import build
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from tests.support import worlds
from tests.support.configs import resolved


def n_fgsm(**changes: Any) -> GradientAttack:
    settings = {"steps": 1, "step_size": 0.1, "start": "uniform", "rel_start_size": 2.0, "project": False}
    return worlds.attack(**{**settings, **changes})


def perturbed(attack: GradientAttack, batch: Batch | None = None) -> tuple[PgdAt, Batch]:
    given, method = worlds.data(), PgdAt(worlds.cnn(), attack)
    worlds.start(method, given)
    return method, method.perturb(batch or given.batch(0, 0))


def test_the_step_goes_from_wide_noise_and_is_not_projected_on_the_ball() -> None:
    method, batch = perturbed(n_fgsm())
    eta = (batch.x + 0.2 * method.rng().uniform(batch.x)).clamp(0, 1) - batch.x
    eta.requires_grad_()
    grad = torch.autograd.grad(F.cross_entropy(method.model(batch.x + eta), batch.y), eta)[0]
    delta = torch.max(torch.min(eta.detach() + 0.1 * grad.sign(), 1 - batch.x), 0 - batch.x)
    torch.testing.assert_close(batch.x_adv, batch.x + delta, rtol=0, atol=1e-15)
    assert 0.2 < (batch.x_adv - batch.x).abs().max() <= 0.3 and batch.x_adv.min() >= 0 and batch.x_adv.max() <= 1


def test_size_of_the_perturbation_in_closed_form() -> None:
    """|U(−2ε, 2ε) ± ε|: 1.25 ε on average, √(4/3 + 1) ε in root mean square, 3 ε at most, away from the box."""
    x = torch.full((64, 1, 8, 8), 0.5, dtype=torch.float64).repeat(4, 1, 1, 1)
    _, batch = perturbed(n_fgsm(), Batch(x=x, y=torch.arange(256) % 3, index=torch.arange(256)))
    delta = (batch.x_adv - x).abs() / 0.1
    assert delta.mean().item() == pytest.approx(1.25, abs=0.015)
    assert delta.square().mean().sqrt().item() == pytest.approx(1.5275, abs=0.015) and delta.max() <= 3


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"rel_start_size": 1.0, "step_size": 0.125, "project": True}, {"step_size": 0.125}),
        ({"rel_start_size": 0.0}, {"step_size": 0.1, "start": "zero"}),
    ],
    ids=["FGSM-RS", "FGSM"],
)
def test_its_limits_are_other_single_steps_to_the_bit(settings: dict[str, Any], other: dict[str, Any]) -> None:
    _, ours = perturbed(n_fgsm(**settings))
    _, theirs = perturbed(worlds.attack(**{"steps": 1, "start": "uniform", **other}))
    assert torch.equal(ours.x_adv, theirs.x_adv)


def test_a_corner_start_of_half_the_radius_is_r_fgsm() -> None:
    method, batch = perturbed(n_fgsm(start="corner", rel_start_size=0.5, step_size=0.05, project=True))
    start = (batch.x + 0.05 * method.rng().uniform(batch.x).sign()).clamp(0, 1).requires_grad_()
    grad = torch.autograd.grad(F.cross_entropy(method.model(start), batch.y), start)[0]
    torch.testing.assert_close(batch.x_adv, (start.detach() + 0.05 * grad.sign()).clamp(0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_the_projection_the_box_is_what_is_left(norm: str) -> None:
    attack = n_fgsm(norm=norm, eps=0.5, step_size=0.5)
    _, batch = perturbed(attack)
    assert batch.x_adv.min() >= 0 and batch.x_adv.max() <= 1
    assert (attack.ball.norm(batch.x_adv - batch.x) > 0.5).any()


def test_the_yaml_is_the_method() -> None:
    cfg = resolved("method=n_fgsm", "attack.eps=0.2")
    attack = build(cfg.attack, "attack")
    assert (attack.steps, attack.step_size, attack.rel_start_size, attack.project) == (1, 0.2, 2.0, False)
    with pytest.raises(ConfigError, match=r"attack\.project"):
        validate.validate_config(resolved("method=n_fgsm", "attack.project=true"))
