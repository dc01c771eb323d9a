"""LBGAT: the network follows the logits of a teacher that is trained along, by both of its losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atbench.data import Batch, TrainData
from atbench.methods.lbgat import Lbgat
from atbench.training import World
from atbench.workflows import factory
from tests.support import reference, worlds
from tests.support.contract import configuration


def maker(norm: str = "none") -> Any:
    """What makes a teacher: another seed, and the changes of the settings."""
    return lambda changes: worlds.cnn(**{"seed": 3, "norm": norm, **changes})


def make(given: TrainData | None = None, beta: float = 0.0, norm: str = "none", **changes: Any) -> tuple[Lbgat, Batch]:
    given = given or worlds.data()
    search = worlds.attack(**{"start": "gaussian", **changes})
    method = Lbgat(worlds.cnn(norm=norm), search, maker(norm), {}, beta)
    method.setup(given)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def squared(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean over rows and classes of the squared difference."""
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    return reference.mean([(u - v) ** 2 for u, v in pairs])


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_loss_is_the_formula_and_trains_both(beta: float) -> None:
    method, batch = make(beta=beta)
    batch = method.perturb(batch)
    clean, adversarial, taught = method.model(batch.x), method.model(batch.x_adv), method.teacher(batch.x)
    distance, ce = squared(adversarial, taught), reference.mean(reference.ce(taught, batch.y))
    kl = reference.mean(reference.kl(clean, adversarial))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(distance + ce + beta * kl, abs=1e-12)
    assert loss.terms["mse"].item() == pytest.approx(distance) and loss.terms["ce"].item() == pytest.approx(ce)
    assert ("kl" in loss.terms) == (beta > 0)
    # Over both networks: a detached teacher, or a detached side of the KL, has another slope.
    exact, measured = reference.slopes(method, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-5)


def test_the_teacher_feels_the_distance_too_and_the_network_no_label() -> None:
    method, batch = make()
    batch = method.perturb(batch)
    taught, adversarial = method.teacher(batch.x), method.model(batch.x_adv)
    wanted = list(method.teacher.parameters())
    from_ce = torch.autograd.grad(nn.functional.cross_entropy(taught, batch.y), wanted, retain_graph=True)
    pull = 2 * (taught - adversarial).detach() / taught.numel()
    from_distance = torch.autograd.grad(taught, wanted, grad_outputs=pull)
    whole = torch.autograd.grad(method.loss(batch).total, wanted)
    for a, b, c in zip(from_ce, from_distance, whole, strict=True):
        torch.testing.assert_close(a + b, c, rtol=0, atol=1e-12)
    assert max(float(grad.abs().max()) for grad in from_distance) > 1e-3
    ours = torch.autograd.grad(method.loss(batch).total, list(method.model.parameters()))
    shuffled = Batch(batch.x, (batch.y + 1) % 3, batch.index, x_adv=batch.x_adv)
    others = torch.autograd.grad(method.loss(shuffled).total, list(method.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def test_without_a_radius_it_is_logit_matching() -> None:
    method, batch = make(eps=0.0)
    batch = method.perturb(batch)
    loss = method.loss(batch)
    assert loss.terms["mse"].item() == pytest.approx(squared(method.model(batch.x), method.teacher(batch.x)), abs=1e-12)


def test_the_attack_is_trades_on_the_network_alone_whatever_beta() -> None:
    found = {}
    for beta in (0.0, 6.0):
        method, batch = make(beta=beta)
        found[beta] = method.perturb(batch).x_adv
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.zero_()
        assert torch.equal(method.perturb(batch).x_adv, found[beta])
    assert torch.equal(found[0.0], found[6.0])
    kl = reference.kl(method.model(batch.x), method.model(found[0.0]))
    noise = reference.kl(method.model(batch.x), method.model(method.attack.begin(batch.x, 0.1, method.rng())))
    assert min(kl) >= 0 and reference.mean(kl) > 10 * reference.mean(noise)


def test_the_teacher_learns_in_train_mode_and_its_statistics_see_clean_images_once() -> None:
    given = worlds.data()
    method, batch = make(given, norm="batch")
    perturbed = method.perturb(batch)
    assert method.teacher.training, "the attack puts its mode back"
    copy, student = maker("batch")({}).train(), worlds.cnn(norm="batch").train()
    taught, adversarial = copy(batch.x), student(perturbed.x_adv)
    student(batch.x)  # whose statistics see both
    loss = method.loss(perturbed)
    assert loss.terms["mse"].item() == pytest.approx(squared(adversarial, taught), abs=1e-12)
    for network, expected in ((method.teacher, copy), (method.model, student)):
        assert worlds.same(network.state_dict(), expected.state_dict())


def test_both_are_trained() -> None:
    given = worlds.data()
    method, _ = make(given)
    assert list(method.groups().items()) == [("model", method.model), ("teacher", method.teacher)]
    assert not worlds.same(method.model.state_dict(), method.teacher.state_dict())
    before = worlds.snapshot(method)
    worlds.steps(method, given, 1)
    after = worlds.snapshot(method)
    trained = [name for name, _ in method.named_parameters()]
    assert {name.split(".")[0] for name in trained} == {"model", "teacher"}
    assert not any(torch.equal(before[name], after[name]) for name in trained)


def test_the_teacher_may_be_another_architecture() -> None:
    resnet = "+method.teacher={_target_: atbench.models.residual.ResNet, blocks: [1, 1], width: 8}"
    for words, name, width in (((), "CNN", 4), (("+method.teacher.width=6",), "CNN", 6), ((resnet,), "ResNet", 8)):
        teacher = assembled(*words).teacher
        assert type(teacher).__name__ == name and next(teacher.parameters()).shape[0] == width


def assembled(*words: str) -> Lbgat:
    """The method as a run builds it."""
    cfg, source, here = configuration("lbgat", *words), worlds.source(), World(torch.device("cpu"))
    data = factory.make_data(cfg, source, here)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, here)
    assert isinstance(method, Lbgat)
    return method


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_contract(beta: float) -> None:
    given = worlds.data()
    method, batch = make(given, beta=beta)
    perturbed = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, perturbed.x_adv, 0.1)
    worlds.check_resume(lambda: make(given, beta=beta)[0], given)


def test_two_processes_are_one() -> None:
    worlds.check_ranks(lambda given: make(given, beta=6.0)[0])
