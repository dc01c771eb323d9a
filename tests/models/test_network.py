"""The contract of a classifier: normalisation inside, stages that join up, ensembles that vote in probability."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atbench.errors import ConfigError
from atbench.models import CNN, Ensemble, Network
from atbench.models.network import per_image_standardize
from atbench.models.preact import WRN
from tests.support.worlds import cnn, linear

F64 = torch.float64


@pytest.fixture(params=["none", "batch"])
def network(request: pytest.FixtureRequest) -> CNN:
    network = cnn(norm=request.param)
    network.eval()
    return network


def images(n: int = 5) -> torch.Tensor:
    return torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=F64)


def test_forward_is_head_of_features(network: CNN) -> None:
    x = images()
    assert torch.equal(network(x), network.head(network.features(x)))


def test_stages_join_up_at_every_cut(network: CNN) -> None:
    x = images()
    whole = network(x)
    for cut in range(network.depth):
        h = network.features(x, upto=cut)
        assert torch.equal(network.classify(network.continue_from(h, cut + 1)), whole)
        for end in range(cut + 1, network.depth):
            assert torch.equal(network.continue_from(h, cut + 1, end), network.features(x, upto=end))


def test_normalisation_is_inside_and_per_channel() -> None:
    torch.manual_seed(0)
    network = CNN((3, 8, 8), 4, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), width=4, norm="none")
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    torch.testing.assert_close(network(x), network.head(network.stages((x - mean) / std)))


def test_an_image_may_be_standardised_by_itself() -> None:
    """As TensorFlow does with pixels from 0 to 255, whatever the data set's numbers: of mean 0 and variance 1, but for
    a deviation below 1/√n, which counts as that. A flat image stays finite, and so does its gradient.
    """
    network = WRN((3, 8, 8), 4, (9.0,) * 3, (9.0,) * 3, depth=10, width=1, standardise="image").double()
    pixels = torch.randint(256, (5, 3, 8, 8)).double()
    pixels[1:] = 100
    pixels[2, 0, 0, 0] += 1  # √(1/192 · 191/192), hardly below the floor
    pixels[3, 0, 0, :2] += 1
    pixels[4, 0, 0, 0] += 1e-3
    z = network.normalise(pixels / 255)
    centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(z.mean((1, 2, 3)), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(z[[0, 3]].square().mean((1, 2, 3)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(z[[1, 2, 4]], centred[[1, 2, 4]] * 192**0.5, rtol=1e-9, atol=1e-9)
    assert z[2, 0, 0, 0].item() == pytest.approx(191 / 192 * 192**0.5)


def test_a_flat_image_is_standardised_to_nothing_in_any_type() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.full((1, 3, 32, 32), 0.5, dtype=dtype).requires_grad_()
        z = per_image_standardize(x)
        z.square().sum().backward()
        assert not z.any() and x.grad is not None and x.grad.isfinite().all()


def test_stage_zero_is_linear(network: CNN) -> None:
    """YOPO's Hamiltonian is exact there: f₀(x + a) − f₀(x) is linear in a."""
    x, a = images(), 0.1 * images()

    def first(z: torch.Tensor) -> torch.Tensor:
        return network.features(z, upto=0)

    torch.testing.assert_close(first(x + 2 * a) - first(x), 2 * (first(x + a) - first(x)), rtol=0, atol=1e-12)


def test_features_are_pre_activation(network: CNN) -> None:
    """A rectified map has no negative entry; a cut before the activation has many."""
    x = images()
    assert all((network.features(x, upto=cut) < 0).double().mean() > 0.1 for cut in range(network.depth - 1))


def test_rows_do_not_see_each_other(network: CNN) -> None:
    x = images()
    torch.testing.assert_close(torch.cat([network(x[i : i + 1]) for i in range(5)]), network(x), rtol=0, atol=1e-12)


def test_low_precision_features_give_full_precision_logits() -> None:
    network = linear().bfloat16()
    assert network.classify(torch.rand(2, 64, dtype=torch.bfloat16)).dtype == torch.float32


def test_activations_are_modules_and_not_in_place(network: CNN) -> None:
    acts = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    assert len(acts) == 4 and not any(m.inplace for m in acts)


@pytest.mark.parametrize(("option", "value"), [("norm", "layer"), ("activation", "tanh")])
def test_unknown_options_are_refused(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{option}"):
        cnn(**{option: value})


def test_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        cnn(shape=(1, 7, 8))


def test_ensemble_is_the_mean_of_probabilities() -> None:
    members, x = [cnn(seed=seed) for seed in range(3)], images()
    p = torch.stack([member(x).softmax(dim=1) for member in members]).mean(dim=0)
    out = Ensemble(members)(x)
    torch.testing.assert_close(out.log_softmax(dim=1), p.log(), rtol=0, atol=1e-14)
    sizes = torch.stack([member(x).logsumexp(dim=1) for member in members]).mean(dim=0)
    torch.testing.assert_close(out.logsumexp(dim=1), sizes, rtol=0, atol=1e-14)


def test_ensemble_of_one_and_of_equals() -> None:
    """They are the member, logits and all: a penalty of logits means the same of one network and of several."""
    member, x = cnn(), images()
    expected = member(x)
    torch.testing.assert_close(Ensemble([member])(x), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(Ensemble([member] * 4)(x), expected, rtol=0, atol=1e-14)


def test_ensemble_survives_a_member_that_is_sure() -> None:
    """Where probabilities underflow, logarithms and gradients stay finite."""
    sure = linear(scale=1000.0).float()
    x = images().float().requires_grad_()
    out = Ensemble([sure, sure])(x)
    out[:, 0].sum().backward()
    assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_a_network_keeps_its_normalisation_in_its_state() -> None:
    state = Network(nn.Sequential(nn.Flatten()), nn.Linear(4, 2), (0.25,), (0.5,)).state_dict()
    assert state["mean"].item() == 0.25 and state["std"].item() == 0.5
