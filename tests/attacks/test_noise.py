"""Random points of the ball: their laws, their number, and that blocks and batches do not show in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import ball
from atbench.attacks.black_box.noise import Noise
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images


class Watch(Aim):
    """Keeps every image that it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.seen: list[Tensor] = []

    def logits(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().logits(x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.05), ("l1", 0.1)])
def test_every_draw_is_another_point_of_the_ball(norm: str, eps: float) -> None:
    network = Linear()
    x, y = images(network, 5)
    keep = distance(network, x, y, norm) > eps
    x, y = x[keep], y[keep]
    aim = Watch(network)
    Noise(norm, eps, steps=50)(aim, x, y, draws(len(x)))
    shown = torch.cat(aim.seen)
    assert aim.passes == 50 * len(x) and aim.gradients == 0 and max(map(len, aim.seen)) <= len(x)
    delta = shown.view(len(x), 50, *x.shape[1:]) - x[:, None]
    assert (ball(norm).norm(delta.flatten(0, 1)) <= eps * (1 + 1e-9)).all()
    assert len(delta.flatten(0, 1).flatten(1).unique(dim=0)) == 50 * len(x)
    if norm == "linf":  # U(−ε, ε): variance ε² / 3
        assert delta.std().item() == pytest.approx(eps / 3**0.5, rel=0.05)


def test_corners_are_vertices() -> None:
    network = Linear()
    x, y = images(network, 4)
    aim = Watch(network)
    Noise("linf", 0.001, steps=9, start="corner")(aim, x, y, draws(4))
    delta = torch.cat(aim.seen) - x.repeat_interleave(9, dim=0)
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.001), rtol=0, atol=1e-12)
    assert abs(float(delta.sign().mean())) < 0.1


def test_the_share_that_breaks_is_that_of_the_volume() -> None:
    """A network that is wrong where the first pixel rose by more than ε/2: a quarter of the ball, 1 − (3/4)^n."""

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rise = x[:, 0, 0, 0] - 0.5
            return torch.stack([torch.full_like(rise, 0.05), rise], dim=1)

    x, y = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2000, dtype=torch.long)
    for steps in (1, 4):
        aim = Aim(Step())
        found = Noise("linf", 0.1, steps)(aim, x, y, draws(len(x)))
        broken = Step()(found).argmax(dim=1) != y
        assert broken.double().mean().item() == pytest.approx(1 - 0.75**steps, abs=0.035)


def test_blocks_go_on_with_survivors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Linear()
    x, y = images(network)
    eps = 3 * float(distance(network, x, y, "linf").median())
    monkeypatch.setattr(Noise, "AT_ONCE", 4 * x[0].numel())
    aim = Watch(network)
    x_adv = Noise("linf", eps, steps=10)(aim, x, y, draws(len(x)))
    broken = network(x_adv).argmax(dim=1) != y
    assert 0 < broken.sum() < len(x)
    assert aim.passes < 10 * len(x) and aim.passes >= 10 * int((~broken).sum())
    # What holds is answered with the draw that came nearest: none of those shown to the network has a larger margin.
    nearest = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    shown = torch.cat(aim.seen)
    for row in (~broken).nonzero().flatten().tolist():
        mine = shown[(shown - x[row]).flatten(1).abs().amax(dim=1) <= eps * (1 + 1e-9)]
        logits = network(mine)
        others = logits.scatter(1, y[row].repeat(len(mine), 1), -torch.inf).amax(dim=1)
        nearest[row] = (others - logits[:, y[row]]).max()
        found = network(x_adv[row : row + 1])[0]
        assert found[torch.arange(5) != y[row]].max() - found[y[row]] <= nearest[row] + 1e-12


@pytest.mark.parametrize(("norm", "start"), [("linf", "gaussian"), ("linf", "zero"), ("l2", "corner")])
def test_what_is_no_noise_is_refused(norm: str, start: str) -> None:
    with pytest.raises(ConfigError, match=r"attack\.start"):
        Noise(norm, 0.1, 5, start)
