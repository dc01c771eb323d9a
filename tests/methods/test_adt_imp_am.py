"""ADT-IMP-AM: the bound of the entropy, who descends what, and the networks of the authors' sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch, Shard, TrainData
from atbench.errors import ConfigError
from atbench.methods.adt_imp_am import AdtImpAm, surprise
from atbench.methods.adt_networks import Encoder, ImplicitGenerator, draw_encoder, draw_weights
from tests.support import reference, worlds

EPS, Z = 0.1, 6


def make(given: TrainData | None = None, **options: Any) -> tuple[AdtImpAm, TrainData, Batch]:
    given = given or worlds.data()
    settings = {"generator_width": 4, "generator_norm": "none", "z_dim": Z, **options}
    method = AdtImpAm(worlds.cnn(), worlds.attack(eps=EPS), **settings)
    method.setup(given)
    with torch.no_grad():
        for parameter in method.generator.parameters():
            parameter.mul_(10)  # so narrow a generator would say next to nothing
    worlds.start(method, given)
    return method, given, method.perturb(given.batch(0, 0))


def made(method: AdtImpAm, batch: Batch) -> tuple[Tensor, Tensor]:
    """x' and nll as the formula has them, with a graph to generator and encoder."""
    z = method.rng("noise").uniform(torch.empty(len(batch), Z, dtype=torch.float64))
    u = torch.tanh(method.generator(batch.aux["inputs"], z))
    out = method.encoder(u)
    mean, variance = out[:, :Z], torch.log1p(out[:, Z:].exp())
    nll = (z - mean) ** 2 / (2 * variance + 1e-8) + (variance + 1e-8).log() / 2 + math.log(math.sqrt(2 * math.pi))
    return (batch.x + EPS * u).clamp(0, 1), nll.mean(1).mean(0)


def test_nll_is_that_of_a_normal_distribution() -> None:
    """softplus(s) is the variance, and not the deviation."""
    rng = torch.Generator().manual_seed(0)
    z, encoded = (torch.randn((3, n), generator=rng, dtype=torch.float64) for n in (2, 4))
    values = []
    for row, out in zip(z.tolist(), encoded.tolist(), strict=True):
        for number, mean, s in zip(row, out[:2], out[2:], strict=True):
            v = math.log1p(math.exp(s))
            values.append((number - mean) ** 2 / (2 * v) + math.log(v) / 2 + math.log(2 * math.pi) / 2)
    assert surprise(z, encoded).mean().item() == pytest.approx(reference.mean(values), rel=1e-7)
    assert surprise(z, encoded).shape == (3,)


@pytest.mark.parametrize("threshold", [0.0, 50.0])
def test_loss_is_the_formula(threshold: float) -> None:
    method, _, batch = make(entropy_weight=0.3, entropy_threshold=threshold)
    x_adv, nll = made(method, batch)
    ce, loss = reference.mean(reference.ce(method.model(x_adv), batch.y)), method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + 0.3 * max(nll.item() - threshold, 0.0), abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["nll"].item() == pytest.approx(nll.item())


@pytest.mark.parametrize("threshold", [0.0, 50.0])
def test_who_descends_what(threshold: float) -> None:
    """∂/∂θ = ∂CE/∂θ;  ∂/∂φ = −∂CE/∂φ + λ·∂nll/∂φ;  ∂/∂encoder = λ·∂nll; none of nll below the threshold."""
    method, _, batch = make(entropy_weight=0.3, entropy_threshold=threshold)
    theta, phi = list(method.model.parameters()), list(method.generator.parameters())
    encoder = list(method.encoder.parameters())
    x_adv, nll = made(method, batch)
    ce, weight = F.cross_entropy(method.model(x_adv), batch.y), 0.3 if threshold == 0 else 0.0
    assert nll > 0
    of_theta, of_phi = (
        torch.autograd.grad(ce, theta, retain_graph=True),
        torch.autograd.grad(ce, phi, retain_graph=True),
    )
    of_nll = torch.autograd.grad(nll, [*phi, *encoder])
    method.loss(batch).total.backward()
    for p, grad in zip(theta, of_theta, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-12)
    for p, grad, bound in zip(phi, of_phi, of_nll[: len(phi)], strict=True):
        torch.testing.assert_close(p.grad, -grad + weight * bound, rtol=0, atol=1e-12)
        assert grad.abs().sum() > 0 and bound.abs().sum() > 0
    for p, bound in zip(encoder, of_nll[len(phi) :], strict=True):
        torch.testing.assert_close(p.grad, weight * bound, rtol=0, atol=1e-12)


def test_two_halves_teach_what_the_whole_does() -> None:
    """nll is compared with the threshold once, over the joint batch: here one half lies above it and one below."""
    whole, _, batch = make()
    z = whole.rng("noise").uniform(torch.empty(len(batch), Z, dtype=torch.float64))
    nll = surprise(z, whole.encoder(torch.tanh(whole.generator(batch.aux["inputs"], z)))).detach()
    threshold = nll.mean().item() - 1e-3
    assert (nll[:6].mean() < threshold) != (nll[6:].mean() < threshold)
    whole.entropy_threshold = threshold
    whole.loss(batch).total.backward()
    expected = [p.grad for p in whole.parameters()]
    total = [torch.zeros_like(p) for p in whole.parameters()]
    for rank in range(2):
        half, _, part = make(worlds.data(shard=Shard(rank, 2)), entropy_threshold=threshold)
        torch.testing.assert_close(part.aux["inputs"], batch.aux["inputs"][6 * rank : 6 * rank + 6], rtol=0, atol=1e-15)

        def gather(rows: Tensor, *, differentiable: bool = False, own: int = rank) -> Tensor:
            """The other half's rows beside one's own; the gradient of both processes' losses, as the sum over them."""
            assert differentiable
            joint = nll.clone()
            joint[6 * own : 6 * own + 6] = 2 * rows - rows.detach()  # the values, with world times the gradient
            return joint

        half.gather = gather  # type: ignore[method-assign]
        for t, grad in zip(total, torch.autograd.grad(half.loss(part).total, list(half.parameters())), strict=True):
            t += grad / 2
    for t, grad in zip(total, expected, strict=True):
        torch.testing.assert_close(t, grad, rtol=0, atol=1e-13)


def test_images_are_legal_and_of_every_step_its_own() -> None:
    method, given, _ = make()
    seen: list[Tensor] = []
    handle = method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for step in range(2):
        method.clock.step = step
        batch = method.perturb(given.batch(0, 0))
        seen.clear()
        method.loss(batch)
        assert len(seen) == 1 and worlds.legal(method.attack, batch.x, seen[0], EPS)
        assert not torch.equal(seen[0], batch.x)
    handle.remove()
    first, second = (make(worlds.data(seed=0))[0] for _ in range(2))
    second.clock.step = 1
    assert not torch.equal(first.loss(batch).total, second.loss(batch).total)  # another z


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, given, batch = make()
    before = worlds.snapshot(method)
    assert torch.equal(method.perturb(given.batch(0, 0)).aux["inputs"], batch.aux["inputs"])
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())


def test_every_parameter_learns_and_has_a_group() -> None:
    method, _, batch = make(generator_norm="batch")
    method(batch).total.backward()
    assert all(p.grad is not None for p in method.parameters())
    grouped = [p for module in method.groups().values() for p in module.parameters()]
    assert len(grouped) == len(list(method.parameters())) == len({id(p) for p in grouped})
    assert list(method.groups()) == ["model", "generator", "encoder"]


def test_resume_is_exact() -> None:
    given = worlds.data()
    worlds.check_resume(lambda: make(given, generator_norm="batch")[0], given, 4)


def test_networks_have_the_authors_sizes() -> None:
    """models/generator.py at 32×32: 10,606,080 and 724,384 parameters, as adt_impam.py prints them."""
    generator, encoder = ImplicitGenerator((3, 32, 32), 64, 256, "batch"), Encoder((3, 32, 32), 64, "batch")
    assert sum(p.numel() for p in generator.parameters()) == 10_606_080
    assert sum(p.numel() for p in encoder.parameters()) == 724_384
    encoder.eval()
    pooled = torch.nn.Sequential(*list(encoder)[:-3])(torch.rand(1, 3, 32, 32))
    assert pooled.shape == (1, 256, 4, 4)
    draw_weights(generator, 0)
    draw_encoder(encoder, 0)
    for name, p in generator.named_parameters():
        if p.ndim > 1:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert not p.any(), name
    for p in encoder.parameters():
        if p.ndim == 4:
            assert p.std().item() == pytest.approx(math.sqrt(2 / (p.shape[0] * p.shape[2] ** 2)), rel=0.1)


@pytest.mark.parametrize("side", [8, 14, 19, 20, 28])
def test_the_encoder_reads_images_of_any_size(side: int) -> None:
    encoder = Encoder((1, side, side), 5, "none")
    x = torch.rand(2, 1, side, side)
    assert encoder(x).shape == (2, 10) and not torch.equal(*encoder(x))


def test_weights_are_the_seeds() -> None:
    methods = [AdtImpAm(worlds.cnn(), worlds.attack(), generator_width=4) for _ in range(3)]
    for method, seed in zip(methods, (0, 0, 1), strict=True):
        method.setup(worlds.data(seed=seed))
    for part in ("generator", "encoder"):
        states = [dict(getattr(method, part).state_dict()) for method in methods]
        assert worlds.same(states[0], states[1]) and not worlds.same(states[0], states[2])


def test_another_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.norm"):
        AdtImpAm(worlds.cnn(), worlds.attack(norm="l2"))
