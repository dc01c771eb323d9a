"""The feature attack: whose features, which images, its formula one step at a time, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.gradient.feature import FeatureAttack, FeatureHook
from atbench.attacks.gradient.odi import ODI
from atbench.data import Images
from atbench.errors import ConfigError
from atbench.models import Ensemble
from tests.support.targets import Aim, Linear, draws
from tests.support.targets import images as grey
from tests.support.traces import N, Trace, uniform, world
from tests.support.worlds import cnn


def split(network: nn.Module, x: Tensor) -> Images:
    pixels = (x * 255).round().to(torch.uint8)
    return Images(pixels, network(pixels.to(x.dtype) / 255).argmax(dim=1))


def unit(v: Tensor) -> Tensor:
    return v / v.square().sum(dim=1, keepdim=True).sqrt()


def test_features_are_what_enters_the_last_linear_layer_that_runs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    aim = Aim(network)
    features, logits = FeatureHook(aim)(x)
    torch.testing.assert_close(features, unit(network[:3](x)))
    torch.testing.assert_close(logits, network(x))
    assert aim.passes == 5 and not any(module._forward_pre_hooks for module in network.modules())
    features, _ = FeatureHook(Aim(convolutional := cnn()))(x)
    torch.testing.assert_close(features, unit(convolutional.features(x).flatten(1)))


def test_the_cosine_of_an_ensemble_is_the_mean_of_its_members() -> None:
    members = [cnn(seed=1), cnn(seed=2)]
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        h = FeatureHook(Aim(Ensemble(members)))(x)[0]
        each = [unit(member.features(x).flatten(1)) for member in members]
    mean = sum((a[:3] * a[3:]).sum(dim=1) for a in each) / 2
    torch.testing.assert_close(nn.functional.cosine_similarity(h[:3], h[3:]), mean)


def test_a_failed_pass_leaves_no_hook() -> None:
    network = Linear()
    with pytest.raises(RuntimeError):
        FeatureHook(Aim(network))(torch.rand(2, 1, 3, 3).double())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_imitated_images_are_of_other_classes_and_a_function_of_seed_and_label() -> None:
    network = Linear()
    x, y = grey(network)
    attack = FeatureAttack("linf", 0.1, split(network, x), targets=6)
    chosen = attack.choose(y, draws(len(x)))
    assert chosen.shape == (len(x), 6)
    assert (attack.images.y[chosen] != y[:, None]).all()
    assert all(len(set(row)) == 6 for row in chosen.tolist())
    for label in y.unique():
        assert (chosen[y == label] == chosen[y == label][0]).all()
    assert torch.equal(attack.choose(y[3:5], draws(len(x))), chosen[3:5])
    assert not torch.equal(attack.choose(y, draws(len(x), seed=1)), chosen)


def test_there_are_never_more_targets_than_other_images() -> None:
    images = Images(torch.zeros(5, 1, 6, 6, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 2]))
    attack = FeatureAttack("linf", 0.1, images, targets=100)
    assert attack.targets == 2
    assert set(attack.choose(torch.tensor([0]), draws(1))[0].tolist()) == {3, 4}


@pytest.mark.parametrize("eps", [2e-5, 0.02])
def test_agrees_with_the_formula(eps: float) -> None:
    network, x, y = world()
    attack = FeatureAttack("linf", eps, split(network, x), steps=5, rel_step_size=0.3, targets=2)
    chosen = attack.choose(y, draws(N))
    x_adv = attack(Aim(network), x, y, draws(N))
    broken = []
    for row in range(N):
        trace = Trace(network, x[row : row + 1], int(y[row]), eps)
        for number in range(2):
            if trace.broken:
                break
            g = network.features(attack.images.floats(chosen[row, number][None], x.dtype)).flatten()
            point = (trace.x + eps * uniform((1, 8, 8), row, "target", number)).clamp(0, 1)
            for _ in range(5):
                if trace.see(point):
                    break
                leaf = point.clone().requires_grad_(True)
                h = network.features(leaf).flatten()
                (1 - h @ g / (h.norm() * g.norm())).backward()
                point = trace.project(point - 0.3 * eps * leaf.grad.sign())
            trace.see(point)
        torch.testing.assert_close(x_adv[row : row + 1], trace.best, rtol=0, atol=1e-12)
        broken.append(trace.broken)
    assert any(broken) == (eps > 0.01)


class Stepped(nn.Module):
    """A linear network whose logits are rounded: their gradient is zero, and that of its features is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return torch.round(logits * 50) / 50


def test_it_breaks_what_hides_the_gradient_of_its_logits() -> None:
    network = Stepped()
    x, y = grey(network)
    features = FeatureAttack("linf", 0.07, split(network, x), steps=20, targets=8)
    logits = ODI("linf", 0.07, restarts=8)  # as many random starts, and nothing but these helps it
    broken = {
        type(attack).__name__: int((network(attack(Aim(network), x, y, draws(len(x)))).argmax(dim=1) != y).sum())
        for attack in (features, logits)
    }
    assert broken["FeatureAttack"] > 1.25 * broken["ODI"]


def test_refusals_name_what_is_missing() -> None:
    images = Images(torch.zeros(5, 1, 6, 6, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ConfigError, match="one class"):
        FeatureAttack("linf", 0.1, images)
    with pytest.raises(ConfigError, match="no linear layer"):
        FeatureHook(Aim(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())))
