"""BAT: the closed-form label, which class is attacked, and FGSM from a random start as the limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.bat import TARGETS, Bat, adversarial_label
from atbench.methods.pgd_at import PgdAt
from atbench.models import Ensemble
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "uniform", "clip_start": False}


def make(network: nn.Module | None = None, attack: dict[str, Any] | None = None, **options: Any) -> tuple[Bat, Batch]:
    given = worlds.data()
    method = Bat(network or worlds.cnn(), worlds.attack(**ONE_STEP, **(attack or {})), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def random_logits(rows: int = 200, classes: int = 10, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(rows, classes, generator=rng, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=rng)


def slow_label(z: list[float], y: int, beta: float, gamma: float) -> list[float]:
    v = [-math.log(math.exp(log_p) + 1e-8) for log_p in reference.log_softmax(z)]
    others = [k for k in range(len(z)) if k != y]
    low, high = min(v[k] for k in others), max(v[k] for k in others)
    total = sum(v[k] - low + gamma for k in others)
    taken = 1 / (1 + beta * (high - low + gamma) / total)
    return [1 - taken if k == y else taken * (v[k] - low + gamma) / total for k in range(len(z))]


@pytest.mark.parametrize(("classes", "beta", "gamma"), [(10, 9.0, 0.01), (3, 2.0, 0.3), (20, 50.0, 0.01)])
def test_label_is_the_closed_form(classes: int, beta: float, gamma: float) -> None:
    logits, y = random_logits(classes=classes)
    label = adversarial_label(logits, y, beta, gamma)
    slow = [slow_label(z, k, beta, gamma) for z, k in zip(logits.tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(label, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(label.sum(dim=1), torch.ones(200, dtype=torch.float64))
    true, others = label.gather(1, y[:, None]), label.scatter(1, y[:, None], 0.0)
    torch.testing.assert_close(true[:, 0], beta * others.amax(dim=1))
    least = label.scatter(1, y[:, None], torch.inf).argmin(dim=1)
    assert torch.equal(least, logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)), "the most confusing class"


def test_label_where_all_others_are_alike_is_label_smoothing() -> None:
    logits, y = torch.zeros(4, 10, dtype=torch.float64), torch.arange(4)
    logits[torch.arange(4), y] = torch.tensor([0.0, 1.0, 5.0, -2.0], dtype=torch.float64)
    expected = torch.full((4, 10), 0.5 / 9, dtype=torch.float64).scatter(1, y[:, None], 0.5)
    torch.testing.assert_close(adversarial_label(logits, y, 9.0, 0.01), expected)


def test_label_of_one_strong_confuser_spares_it() -> None:
    """The authors' code on such a row: .529 for the label, 1e-4 for the confuser, .0588 for each of the others."""
    logits = torch.zeros(1, 10, dtype=torch.float64)
    logits[0, 3], logits[0, 7] = 8.0, 6.0
    label = adversarial_label(logits, torch.tensor([3]), 9.0, 0.01)[0]
    assert label[3].item() == pytest.approx(0.529, abs=1e-3) and label[7].item() == pytest.approx(1e-4, abs=2e-5)
    assert label[0].item() == pytest.approx(0.0588, abs=1e-4)


def slow_target(kind: str, z: list[float], y: int, rows: list[list[float]]) -> int:
    others = [k for k in range(len(z)) if k != y]
    confusing = max(others, key=lambda k: z[k])
    ways = {k: (z[y] - z[k] if z[y] - z[k] > 1e-4 else 1e4) / math.dist(rows[y], rows[k]) for k in others}
    reached = min(others, key=lambda k: ways[k])
    wrong = z[confusing] > z[y]
    return {"most_confusing": confusing, "mosa": reached, "mix": confusing if wrong else reached}[kind]


@pytest.mark.parametrize("kind", ["most_confusing", "mosa", "mix"])
def test_targets_are_those_of_the_definition(kind: str) -> None:
    network = worlds.linear(classes=10)
    method, _ = make(network, target=kind)
    logits, y = random_logits()
    logits[:5].scatter_(1, y[:5, None], -20.0)  # no class lies below y
    rows = network.head.weight.tolist()
    slow = [slow_target(kind, z, k, rows) for z, k in zip(logits.tolist(), y.tolist(), strict=True)]
    found = method.targets(logits, y)
    assert found.tolist() == slow and not bool((found == y).any())
    wrong = logits.argmax(dim=1) != y
    assert 20 < int(wrong.sum()) < 190


def test_the_kinds_of_target_differ() -> None:
    logits, y = random_logits()
    methods = {kind: make(worlds.linear(classes=10), target=kind)[0] for kind in TARGETS[:4]}
    found = {kind: tuple(method.targets(logits, y).tolist()) for kind, method in methods.items()}
    assert len(set(found.values())) == 4


def test_random_targets_are_all_wrong_classes_alike_and_drawn_anew() -> None:
    method, _ = make(worlds.linear(classes=4), target="random")
    y = torch.arange(6000) % 4
    logits = torch.zeros(6000, 4, dtype=torch.float64)
    found = method.targets(logits, y)
    share = torch.bincount((found - y) % 4, minlength=4) / 6000
    assert share[0] == 0 and bool(((share[1:] - 1 / 3).abs() < 0.03).all())
    assert torch.equal(found, method.targets(logits, y))
    method.clock.step = 1
    assert not torch.equal(found, method.targets(logits, y))


@pytest.mark.parametrize("target", TARGETS)
def test_one_step_from_a_start_outside_the_box(target: str) -> None:
    method, batch = make(target=target)
    x = (batch.x + 0.1 * method.rng().uniform(batch.x)).requires_grad_()
    assert float(x.detach().min()) < 0 or float(x.detach().max()) > 1
    clean = method.model(batch.x).detach()
    if target == "untargeted":
        value = -sum_of_ce(method.model(x), batch.y)
    else:
        value = sum_of_ce(method.model(x), method.targets(clean, batch.y))
    (grad,) = torch.autograd.grad(value, x)
    ahead = x.detach() - 0.1 * grad.sign()
    expected = torch.max(torch.min(ahead, batch.x + 0.1), batch.x - 0.1).clip(0, 1)
    found = method.perturb(batch)
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.aux["label"], adversarial_label(clean, batch.y, 9.0, 0.01), rtol=0, atol=1e-14)


def sum_of_ce(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.log_softmax(dim=1).gather(1, y[:, None]).sum()


def test_loss_is_the_cross_entropy_with_the_new_label() -> None:
    method, batch = make()
    found = method.perturb(batch)
    logits, label = method.model(found.x_adv), found.aux["label"].tolist()
    rows = zip(logits.tolist(), label, strict=True)
    slow = [-sum(s * log_p for s, log_p in zip(share, reference.log_softmax(z), strict=True)) for z, share in rows]
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(reference.mean(slow), abs=1e-12)
    assert not found.aux["label"].requires_grad and torch.equal(loss.logits, logits)


def test_untargeted_with_the_true_label_is_fgsm_from_a_random_start_to_the_bit() -> None:
    given = worlds.data()
    method = Bat(worlds.cnn(), worlds.attack(**ONE_STEP), target="untargeted", beta=None)
    other = PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_target_and_label_are_chosen_with_running_statistics_which_move_once_a_batch() -> None:
    method, batch = make(worlds.cnn(norm="batch"))
    norm: Any = method.model.stages[1][0]  # type: ignore[index,union-attr]
    norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    method.model.eval()
    clean = method.model(batch.x).detach()
    method.train()
    found = method.perturb(batch)
    assert torch.equal(found.aux["label"], adversarial_label(clean, batch.y, 9.0, 0.01))
    assert norm.num_batches_tracked == 0
    method.loss(found)
    assert norm.num_batches_tracked == 1


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"method\.target: cw .* most_confusing, random, mosa"):
        make(target="cw")
    networks: list[nn.Module] = [Ensemble([worlds.linear(), worlds.linear()]), worlds.cnn(head="hypersphere")]
    for network in networks:
        for target in ("mosa", "mix"):
            with pytest.raises(ConfigError, match=rf"method\.target: {target} .*linear head"):
                make(network, target=target)
        make(network)


@pytest.mark.parametrize("target", ["most_confusing", "random", "mosa"])
def test_contract(target: str) -> None:
    method, batch = make(target=target)
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda _: make(target=target)[0])
    assert method.forward_cost(1) == 6
