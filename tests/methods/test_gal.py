"""GAL: the coherence against gradients by hand; true second derivatives; adversarial training on top."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.ensemble import pairwise_cosines
from atbench.methods.gal import Gal
from atbench.models import Ensemble
from tests.support import reference, worlds

F64 = torch.float64


def make(members: int = 3, same: bool = False, **options: object) -> tuple[Gal, Batch]:
    networks = [worlds.cnn(seed=0 if same else seed, activation="leaky_relu") for seed in range(members)]
    method, given = Gal(Ensemble(networks), worlds.attack(), **options), worlds.data()  # type: ignore[arg-type]
    worlds.start(method, given)
    return method, method.perturb(given.batch(0, 0))


def slow_coherence(method: Gal, batch: Batch) -> float:
    """Example by example, in plain numbers."""
    values = []
    for x, y in zip(batch.x, batch.y, strict=True):
        rows = []
        for member in method.members:
            z = x[None].clone().requires_grad_()
            loss = -member(z).log_softmax(dim=1)[0, y]
            rows.append(torch.autograd.grad(loss, z)[0].flatten().tolist())
        cosines = []
        for a, b in combinations(rows, 2):
            dot = math.fsum(p * q for p, q in zip(a, b, strict=True))
            cosines.append(dot / math.sqrt(math.fsum(p * p for p in a) * math.fsum(q * q for q in b)))
        values.append(math.log(math.fsum(math.exp(c) for c in cosines)))
    return reference.mean(values)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("adversarial", [False, True])
def test_loss_is_the_formula(members: int, adversarial: bool) -> None:
    method, batch = make(members, coherence=0.7, adversarial=adversarial)
    images = [batch.x, batch.x_adv] if adversarial else [batch.x]
    risks = [reference.mean(reference.ce(member(x), batch.y)) for x in images for member in method.members]
    expected = sum(risks) / members + 0.7 * slow_coherence(method, batch)
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-10)
    assert torch.equal(batch.x_adv, batch.x) is not adversarial


@pytest.mark.parametrize("members", [2, 3, 4])
def test_members_that_are_alike_have_the_greatest_coherence(members: int) -> None:
    method, batch = make(members, same=True)
    expected = 1 + math.log(members * (members - 1) / 2)
    assert method.loss(batch).terms["coherence"].item() == pytest.approx(expected, abs=1e-9)


def test_orthogonal_and_opposite_gradients() -> None:
    eye = torch.eye(3, dtype=F64)[:, None]
    assert pairwise_cosines(list(eye)).logsumexp(dim=0).item() == pytest.approx(math.log(3), abs=1e-12)
    assert pairwise_cosines([eye[0], -2 * eye[0]]).item() == pytest.approx(-1, abs=1e-12)
    assert pairwise_cosines([eye[0], 0 * eye[0]]).item() == 0


def test_the_gradient_is_differentiated_again() -> None:
    method, batch = make(coherence=3.0)
    exact, numeric = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(numeric, rel=1e-5)
    plain, _ = make(coherence=0.0)
    assert abs(exact - reference.slopes(plain.model, lambda: plain.loss(batch).total)[0]) > 1e-3 * abs(exact)


def test_without_the_coherence_members_learn_alone() -> None:
    method, batch = make(coherence=0.0)
    method.loss(batch).total.backward()
    for member in method.members:
        risk = torch.nn.functional.cross_entropy(member(batch.x), batch.y) / 3
        grads = torch.autograd.grad(risk, list(member.parameters()))
        for parameter, grad in zip(member.parameters(), grads, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-14)


def test_nothing_is_attacked_unless_asked_for() -> None:
    method, batch = make()
    assert batch.x_adv is batch.x and method.fixed_steps() == {}
    assert set(make(adversarial=True)[0].fixed_steps()) == {"attack"}


def test_adversarial_images_are_those_of_the_ensemble() -> None:
    method, batch = make(adversarial=True)

    def ensembles(x: Tensor) -> Tensor:
        p = torch.stack([member(x).softmax(dim=1) for member in method.members]).mean(dim=0)
        return torch.nn.functional.nll_loss(p.log(), batch.y, reduction="sum")

    z = method.attack.begin(batch.x, 0.1, method.rng())
    for _ in range(3):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(ensembles(z), z)
        z = (batch.x + (z.detach() + 0.04 * grad.sign() - batch.x).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(batch.x_adv, z, rtol=0, atol=1e-12)
    worlds.check_pure(method, worlds.data().batch(0, 0))


def test_one_network_is_refused() -> None:
    for model in (worlds.cnn(), Ensemble([worlds.cnn()])):
        with pytest.raises(ConfigError, match=r"model\.members: 1"):
            Gal(model, worlds.attack())


def test_two_processes_equal_one() -> None:
    worlds.check_ranks(lambda given: make(adversarial=True)[0])
