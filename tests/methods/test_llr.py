"""LLR: the distance from the tangent and its gradient, under the statistics of the clean batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.llr import Distance, Llr
from atbench.methods.standard import Standard
from atbench.models import Network, attack_mode, capture_batch_statistics
from atbench.training import World
from tests.support import reference, worlds
from tests.support.contract import Log, trainer_of

SETTINGS: dict[str, Any] = {"rule": "adam", "bn": "fixed", "step_size": 0.1}


def smooth(norm: str = "none", **options: Any) -> nn.Module:
    return worlds.cnn(activation="softplus", norm=norm, **options)


def make(network: nn.Module | None = None, **options: Any) -> tuple[Llr, Batch]:
    given = worlds.data(worlds.source(inset=0.25))
    method = Llr(network or smooth(), worlds.attack(**SETTINGS), **{"warmup": 0.0, **options})
    worlds.start(method, given)
    return method, given.batch(0, 0)


def moved(batch: Batch, eps: float = 0.2) -> Batch:
    """A random perturbation of every image, so that the loss rises for some and falls for others."""
    rng = torch.Generator().manual_seed(3)
    delta = torch.rand(batch.x.shape, generator=rng, dtype=torch.float64) * 2 - 1
    return batch.with_adv((batch.x + eps * delta.sign()).clamp(0, 1))


def curved(network: nn.Module, scale: float = 6.0) -> nn.Module:
    """The network with larger weights: its loss bends both ways."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    return network


def slow(network: nn.Module, batch: Batch, h: float = 1e-5) -> tuple[list[float], list[float], list[float]]:
    """ℓ(x), ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x) and δᵀ∇ℓ(x) of each example, the last by a difference quotient along δ."""
    delta = batch.x_adv - batch.x

    def losses(t: float) -> list[float]:
        with torch.no_grad():
            return reference.ce(network(batch.x + t * delta), batch.y)

    value, ahead = losses(0.0), losses(1.0)
    slope = [(a - b) / (2 * h) for a, b in zip(losses(h), losses(-h), strict=True)]
    return value, [a - v - s for a, v, s in zip(ahead, value, slope, strict=True)], slope


@pytest.mark.parametrize(("linearity", "slope"), [(4.0, 3.0), (2.0, 0.6), (0.0, 1.0), (1.0, 0.0)])
def test_loss_is_the_formula_example_by_example(linearity: float, slope: float) -> None:
    method, batch = make(curved(smooth()), linearity=linearity, slope=slope)
    batch = moved(batch)
    value, rest, foretold = slow(method.model, batch)
    assert min(rest) < -0.01 and max(rest) > 0.01, "a mean of signed distances would be another"
    assert min(foretold) < -0.01 and max(foretold) > 0.01
    ce = reference.mean(value)
    distance, change = reference.mean([abs(v) for v in rest]), reference.mean([abs(v) for v in foretold])
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce + linearity * distance + slope * change, abs=1e-7)
    terms = {name: loss.terms[name].item() for name in ("ce", "linearity", "slope")}
    assert terms == pytest.approx({"ce": ce, "linearity": distance, "slope": change}, abs=1e-7)
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("linearity", "slope"), [(4.0, 3.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradient_flows_through_the_tangent_and_the_statistics(norm: str, linearity: float, slope: float) -> None:
    """By finite differences of the weights: a ∇ℓ(x) or statistics held constant have another slope."""
    method, batch = make(smooth(norm), linearity=linearity, slope=slope)
    batch = method.perturb(batch)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


def test_everything_is_normalised_by_the_clean_batch() -> None:
    method, batch = make(smooth("batch"))
    batch = moved(batch)
    with torch.no_grad(), attack_mode(method.model, "batch", freeze=False), capture_batch_statistics(method.model):
        value = F.cross_entropy(method.model(batch.x), batch.y, reduction="none")
    with torch.no_grad(), attack_mode(method.model, "fixed", freeze=False):
        ahead = F.cross_entropy(method.model(batch.x_adv), batch.y, reduction="none")
    with attack_mode(method.model, "batch", freeze=False):
        x = batch.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(method.model(x), batch.y, reduction="sum"), x)
    foretold = ((batch.x_adv - batch.x) * grad).flatten(1).sum(dim=1)
    loss = method.loss(batch)
    assert loss.terms["ce"].item() == pytest.approx(value.mean().item(), abs=1e-12)
    assert loss.terms["linearity"].item() == pytest.approx((ahead - value - foretold).abs().mean().item(), abs=1e-12)
    assert loss.terms["slope"].item() == pytest.approx(foretold.abs().mean().item(), abs=1e-12)


def test_running_statistics_move_once_an_update_and_not_while_searching() -> None:
    method, batch = make(smooth("batch"))
    twin = copy.deepcopy(method.model).train()
    before = worlds.snapshot(method)
    batch = method.perturb(batch)
    assert worlds.same(before, worlds.snapshot(method))
    method.loss(batch)
    twin(batch.x)
    assert worlds.same(dict(method.model.state_dict()), dict(twin.state_dict()))
    assert all(module.training for module in method.modules())


def test_at_the_image_itself_nothing_is_left() -> None:
    """Neither value nor gradient: the two passes are one network, dropout included."""

    class Dropped(Network):
        def __init__(self) -> None:
            inner = smooth("batch")
            assert isinstance(inner, Network)
            stages = nn.Sequential(*inner.stages, nn.Dropout(0.5))
            super().__init__(stages, inner.head, (0.5,), (0.5,))

    method, batch = make(Dropped().double())
    loss = method.loss(batch.with_adv(batch.x))
    assert loss.terms["linearity"] < 1e-12 and loss.terms["slope"] == 0
    grads = torch.autograd.grad(loss.total, list(method.parameters()))
    x = batch.x.clone()
    plain = F.cross_entropy(method.model.eval().train()(x), batch.y)
    assert plain.item() != pytest.approx(loss.terms["ce"].item()), "dropout is on outside"
    assert all(grad.isfinite().all() for grad in grads)
    assert torch.equal(method.loss(batch.with_adv(batch.x)).total, loss.total)


def test_linear_logits_lie_above_their_tangent() -> None:
    """Cross-entropy is convex in the logits, so that no absolute value is needed; and the search finds more of it."""
    method, batch = make(worlds.linear())
    random = moved(batch)
    _, rest, _ = slow(method.model, random)
    assert min(rest) > 0
    assert method.loss(random).terms["linearity"].item() == pytest.approx(reference.mean(rest), abs=1e-6)
    start = batch.with_adv(method.attack.begin(batch.x, method.attack.eps, method.rng()))
    found = method.perturb(batch)
    assert method.loss(found).terms["linearity"] > 1.5 * method.loss(start).terms["linearity"]


def test_a_loss_that_is_linear_has_no_distance() -> None:
    """Two classes, far on the wrong side: ℓ(x) is the margin to rounding."""
    network = worlds.linear(classes=2)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([500.0, 0.0]))
    method, batch = make(network)
    wrong = Batch(batch.x, torch.ones_like(batch.y), batch.index)
    terms = method.loss(moved(wrong)).terms
    assert terms["linearity"] < 1e-9 and terms["slope"] > 1e-2


def test_the_search_climbs_the_distance_from_the_tangent() -> None:
    """Values and slopes of the objective, for some of the rows too."""
    network = curved(smooth())
    _, batch = make(network)
    batch = moved(batch)
    x = batch.x.clone().requires_grad_()
    value = F.cross_entropy(network(x), batch.y, reduction="none")
    (grad,) = torch.autograd.grad(value.sum(), x)
    objective = Distance(network, batch.x, batch.y, value.detach(), grad)
    _, rest, _ = slow(network, batch)
    assert objective(batch.x_adv)[0].tolist() == pytest.approx([abs(v) for v in rest], abs=1e-7)
    rows = torch.tensor([5, 1, 7])
    assert objective(batch.x_adv[rows], rows)[0].tolist() == pytest.approx([abs(rest[i]) for i in rows], abs=1e-7)

    point = batch.x_adv.clone().requires_grad_()
    (climb,) = torch.autograd.grad(objective(point)[0].sum(), point)
    way = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        up, down = (objective(batch.x_adv + t * way)[0].sum() for t in (1e-6, -1e-6))
    assert (climb * way).sum().item() == pytest.approx((up - down).item() / 2e-6, rel=1e-5)


def test_the_code_s_search_stops_the_tangent() -> None:
    """The same value; the gradient sign(ℓ(x+δ) − tangent)·∇ℓ(x+δ), without −sign·∇ℓ(x)."""
    network = curved(smooth())
    _, batch = make(network)
    batch = moved(batch)

    def gradient(at: Tensor, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        point = at.clone().requires_grad_()
        value = F.cross_entropy(network(point), batch.y, reduction="none")
        return value.detach(), torch.autograd.grad((weight * value).sum(), point)[0]

    value, grad = gradient(batch.x)
    flat, full = (Distance(network, batch.x, batch.y, value, grad, flat=flat) for flat in (True, False))
    assert torch.equal(flat(batch.x_adv)[0], full(batch.x_adv)[0])
    point = batch.x_adv.clone().requires_grad_()
    (found,) = torch.autograd.grad(flat(point)[0].sum(), point)
    ahead, _ = gradient(batch.x_adv)
    sign = (ahead - value - ((batch.x_adv - batch.x) * grad).flatten(1).sum(dim=1)).sign()
    assert sign.unique().tolist() == [-1.0, 1.0]
    torch.testing.assert_close(found, gradient(batch.x_adv, sign)[1], rtol=0, atol=1e-12)


def test_the_formula_s_search_finds_more_where_the_loss_is_nearly_linear() -> None:
    """By default the code's is run, with λ and μ of the code (tests/paper/llr.yaml has those of the paper)."""
    assert (make()[0].linearity, make()[0].slope) == (2.0, 0.6)

    def distance(**options: Any) -> float:
        method, batch = make(curved(smooth(), scale=2.0), **options)
        method.attack.steps = 10
        return method.loss(method.perturb(batch)).terms["linearity"].item()

    assert distance(search="formula") > 1.5 * distance(search="code") > 0
    assert distance() == distance(search="code")
    with pytest.raises(ConfigError, match=r"method\.search: paper .* code or formula"):
        make(search="paper")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("search", ["formula", "code"])
def test_perturbations_are_legal_and_worse_than_random(norm: str, search: str) -> None:
    method, batch = make(curved(smooth(norm)), search=search)
    method.attack.steps = 10
    found = method.perturb(batch)
    assert worlds.legal(method.attack, batch.x, found.x_adv, method.attack.eps)
    start = batch.with_adv(method.attack.begin(batch.x, method.attack.eps, method.rng()))
    assert method.loss(found).terms["linearity"] > 2 * method.loss(start).terms["linearity"]
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


def test_the_radius_grows_from_zero() -> None:
    method, batch = make(warmup=0.5)
    clock, widths = method.clock, []
    for epoch in range(clock.epochs):
        clock.epoch = epoch
        widths.append((method.perturb(batch).x_adv - batch.x).abs().max().item())
    assert widths == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_weights_it_is_standard_training_to_the_bit(norm: str) -> None:
    def trained(method: Llr | Standard) -> dict[str, Tensor]:
        worlds.steps(method, worlds.data(), 6)
        return worlds.snapshot(method)

    ours = trained(Llr(smooth(norm), worlds.attack(**SETTINGS), linearity=0.0, slope=0.0))
    assert worlds.same(ours, trained(Standard(smooth(norm), worlds.attack())))


def test_label_smoothing_is_the_risk_s_alone() -> None:
    method, batch = make()
    batch = moved(batch)
    plain = method.loss(batch).terms
    method.risk.label_smoothing = 0.2
    smoothed = method.loss(batch).terms
    assert smoothed["ce"] != plain["ce"]
    assert smoothed["linearity"] == plain["linearity"] and smoothed["slope"] == plain["slope"]


def test_perturb_and_loss_repeat_and_processes_share_them() -> None:
    method, batch = make()
    worlds.check_pure(method, batch)

    def fresh(given: TrainData) -> Llr:
        return Llr(smooth(), worlds.attack(**SETTINGS), warmup=0.0)

    worlds.check_ranks(fresh)


def test_the_search_may_run_in_half_precision() -> None:
    given = worlds.data(dtype=torch.float32)
    method = Llr(smooth("batch").float(), worlds.attack(**SETTINGS), warmup=0.0)
    worlds.start(method, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.perturb(given.batch(0, 0))
    assert method.loss(found).total.isfinite()


def test_the_update_may_not() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision\.update"):
        trainer_of("llr", World(torch.device("cpu")), Log(), "train.precision.update=bf16")


def test_attention_is_differentiated_twice() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(1, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.embed(x.flatten(1)[:, :, None]).chunk(3, dim=2)
            return self.head(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).mean(dim=(1, 2)))

    method, batch = make(Attending().double())
    batch = method.perturb(batch)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)
