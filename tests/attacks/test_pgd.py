"""PGD and its relatives: the same points as foolbox, closed forms, restarts, averages over a random network."""

from __future__ import annotations

from typing import Any

import foolbox
import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import AscentAttack, GradientAttack, cross_entropy, margin
from atbench.attacks.gradient.pgd import Averaged, Pgd, RandomFgsm
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images, make


def conv() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)
    )
    return net.requires_grad_(False).eval()


def pictures(network: nn.Module, n: int = 24) -> tuple[Tensor, Tensor]:
    """Over the whole box, so that it cuts the ball."""
    x = torch.rand((n, 1, 12, 12), generator=torch.Generator().manual_seed(4))
    return x, network(x).argmax(dim=1)


def pgd(norm: str = "linf", eps: float = 0.1, **changes: Any) -> Pgd:
    return Pgd(norm, eps, **{"steps": 8, "rel_step_size": 0.25, **changes})


FOOLBOX = {
    "linf": lambda steps: foolbox.attacks.LinfPGD(rel_stepsize=0.3, steps=steps, random_start=False),
    "l2": lambda steps: foolbox.attacks.L2PGD(rel_stepsize=0.3, steps=steps, random_start=False),
}


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 1.0)])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_same_points_as_foolbox(norm: str, eps: float, steps: int) -> None:
    network = conv()
    x, y = pictures(network)
    _, expected, _ = FOOLBOX[norm](steps)(foolbox.PyTorchModel(network, (0, 1), device="cpu"), x, y, epsilons=eps)
    attack = pgd(norm, eps, steps=steps, rel_step_size=0.3, start="zero", return_point="last")
    found = attack(Aim(network), x, y, draws(len(x)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert attack.ball.norm(found - x).max() > 0.2 * eps


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 1.0)])
def test_fgsm_of_the_training_side_is_foolbox_s(norm: str, eps: float) -> None:
    network = conv()
    x, y = pictures(network)
    theirs = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}[norm]()
    _, expected, _ = theirs(foolbox.PyTorchModel(network, (0, 1), device="cpu"), x, y, epsilons=eps)
    fgsm, aim = AscentAttack(GradientAttack(norm, eps, steps=1, step_size=eps, start="zero")), Aim(network)
    torch.testing.assert_close(fgsm(aim, x, y, draws(len(x))), expected, rtol=0, atol=1e-5)
    assert aim.passes == len(x)


def test_a_search_that_keeps_its_best_point_still_answers_with_a_wrong_one() -> None:
    """Ten classes almost tied, and the label ahead: a higher cross-entropy than beside one class that leads it."""

    class Trap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            t = x.flatten(1)[:, :1]
            near = torch.cat([0.1 - 0.1 * t, *[0 * t] * 9], dim=1)
            far = torch.cat([0 * t, 0.5 + 0 * t, *[0 * t - 10] * 8], dim=1)
            return torch.where(t < 0.55, near, far)

    x, y = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    search = GradientAttack("linf", 0.5, steps=3, step_size=0.1, start="zero", return_point="best")
    found = AscentAttack(search)(Aim(Trap()), x, y, draws(1))
    assert cross_entropy(Trap()(x), y) > cross_entropy(Trap()(found), y)
    assert Trap()(found).argmax() == 1 and search.return_point == "best"


def test_the_first_wrong_point_is_found_where_the_last_is_right() -> None:
    """A class that leads only on the way: `first` stops there, `last` walks past it."""

    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            t = x.flatten(1)[:, :1]
            return torch.cat([0.3 - 0 * t, t - 0.5, 1 - 10 * (t - 0.6).abs()], dim=1)

    x, y = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    steps = {"eps": 0.25, "steps": 2, "rel_step_size": 0.4, "start": "zero", "objective": "ce"}
    first, last = (pgd(**steps, return_point=keep)(Aim(Ridge()), x, y, draws(1)) for keep in ("first", "last"))
    assert first.item() == pytest.approx(0.6) and Ridge()(first).argmax() == 2
    assert last.item() != pytest.approx(0.6) and Ridge()(last).argmax() == 0


@pytest.mark.parametrize("keep", ["first", "last"])
def test_restarts_run_on_survivors_and_break_the_union(keep: str) -> None:
    """Every restart alone, with its own stream, breaks what it breaks; together they break all of that at less cost."""
    network = conv()
    x, y = pictures(network, 40)
    options = {"eps": 0.02, "steps": 3, "rel_step_size": 0.4, "return_point": keep}
    aim = Aim(network)
    broken = network(pgd(**options, restarts=3)(aim, x, y, draws(len(x)))).argmax(dim=1) != y
    union, sizes = torch.zeros_like(broken), []
    for restart in range(3):
        sizes.append(int((~union).sum()))
        attack = pgd(**options)
        found = attack._restart(Aim(network), x, y, draws(len(x)).at("restart", restart), torch.arange(len(x)))
        union |= found.broken
    assert torch.equal(broken, union) and 0 < union.sum() < len(x) and sizes[0] > sizes[-1]
    assert aim.gradients <= 3 * sum(sizes) and aim.passes <= 4 * sum(sizes)


def test_restarts_differ_in_their_starts() -> None:
    network = Linear()
    x, y = images(network, 4)
    seen: list[Tensor] = []

    class Watch(Aim):
        def logits(self, z: Tensor) -> Tensor:
            seen.append(z.detach().clone())
            return super().logits(z)

    pgd(eps=1e-3, steps=1, restarts=3, rel_step_size=0.0)(Watch(network), x, y, draws(4))
    assert len(seen) == 6 and len({float(z[0, 0, 0, 0]) for z in seen[::2]}) == 3


def test_the_papers_pgd_costs_its_gradients_and_nothing_else() -> None:
    network, (x, y) = Linear(), images(Linear())
    aim = Aim(network)
    pgd(return_point="last", steps=5)(aim, x, y, draws(len(x)))
    assert aim.passes == aim.gradients == 5 * len(x)


@pytest.mark.parametrize(("objective", "value"), [("ce", cross_entropy), ("margin", margin)])
def test_what_did_not_break_is_the_highest_of_the_restarts(objective: str, value: Any) -> None:
    network = conv()
    x, y = pictures(network)
    options = {"eps": 0.004, "steps": 2, "rel_step_size": 0.1, "objective": objective}
    joint = pgd(**options, restarts=4)(Aim(network), x, y, draws(len(x)))
    single = torch.stack(
        [
            value(network(attack._restart(Aim(network), x, y, rng, torch.arange(len(x))).x_adv), y)
            for attack, rng in ((pgd(**options), draws(len(x)).at("restart", r)) for r in range(4))
        ]
    )
    held = network(joint).argmax(dim=1) == y
    assert held.any() and (single.argmax(dim=0)[held] != 3).any()
    torch.testing.assert_close(value(network(joint), y)[held], single.amax(dim=0)[held])


def test_r_fgsm_is_a_random_sign_step_and_a_gradient_step() -> None:
    """On a linear network of two classes: every pixel at x or at x + ε·sign(w), and a coin says which."""
    network = Linear(classes=2)
    x, y = images(network)
    x_adv = make("rfgsm", "linf", 0.1)(Aim(network), x, y, draws(len(x)))
    weight = network.head.weight.detach()
    away = (weight[1 - y] - weight[y]).sign().view_as(x)
    share = (x_adv - x) / (0.1 * away)
    assert torch.minimum(share.abs(), (share - 1).abs()).max() < 1e-9
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)


def test_fgsm_rs_is_the_start_plus_a_long_step_cut_by_the_ball() -> None:
    network = Linear(classes=2)
    x, y = images(network)
    x_adv = make("fgsm_rs", "linf", 0.1)(Aim(network), x, y, draws(len(x)))
    weight = network.head.weight.detach()
    away = (weight[1 - y] - weight[y]).sign().view_as(x)
    share = (x_adv - x) / (0.1 * away)
    assert share.min() >= 0.25 - 1e-9 and share.max() <= 1 + 1e-9
    # u + 1.25 is cut to 1 where u > −1/4: 62.5 % of the pixels; the rest is uniform on [1/4, 1].
    assert (share > 1 - 1e-9).double().mean().item() == pytest.approx(0.625, abs=0.04)
    assert share[share < 1 - 1e-9].mean().item() == pytest.approx(0.625, abs=0.03)


class Masked(nn.Module):
    """A linear network that sees a random half of the pixels, doubled: on average, the linear network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.source = Linear(), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * torch.randint(2, x.shape, generator=self.source)
        logits: Tensor = self.network(0.5 + (x - 0.5) * mask)
        return logits


def test_an_average_over_a_network_that_is_not_random_changes_nothing() -> None:
    network, (x, y) = Linear(), images(Linear())
    one, many = Aim(network), Aim(network)
    plain = pgd(eps=0.02)(one, x, y, draws(len(x)))
    averaged = pgd(eps=0.02, eot_samples=4)(many, x, y, draws(len(x)))
    torch.testing.assert_close(averaged, plain, rtol=0, atol=1e-12)
    assert many.passes == 4 * one.passes


def test_the_average_is_that_of_values_gradients_and_probabilities() -> None:
    x, y = images(Linear(), 6)
    network = Masked()
    x.requires_grad_()
    mean, probabilities = Averaged(network, cross_entropy, y, eot_samples=3)(x)
    (grad,) = torch.autograd.grad(mean.sum(), x)
    network.source.manual_seed(0)
    logits = [network(x) for _ in range(3)]
    values = torch.stack([cross_entropy(z, y) for z in logits]).mean(dim=0)
    torch.testing.assert_close(mean, values)
    torch.testing.assert_close(grad, torch.autograd.grad(values.sum(), x)[0])
    torch.testing.assert_close(probabilities, torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0))


def test_averaging_climbs_a_random_network_further() -> None:
    """The mean gradient of many passes points where one pass's does only on average."""
    network = Masked()
    x, y = images(network.network)
    gains = []
    for count in (1, 16):
        network.source.manual_seed(0)
        attack = pgd("l2", 0.5, steps=1, rel_step_size=1.0, eot_samples=count, return_point="last", start="zero")
        gains.append(cross_entropy(network.network(attack(Aim(network), x, y, draws(len(x)))), y).mean())
    assert gains[1] > gains[0] + 0.05


@pytest.mark.parametrize("objective", ["ce", "margin", "cw", "dlr"])
def test_every_objective_reaches_the_edge_of_a_linear_network(objective: str) -> None:
    """Three classes, one of them far away: the nearest boundary is the other one's."""
    network = Linear(classes=3)
    with torch.no_grad():
        network.head.bias -= torch.tensor([0.0, 0.0, 30.0])
    x, y = images(network)
    far = distance(network, x, y, "linf")
    for factor, expected in ((0.99, False), (1.01, True)):
        for row in range(0, len(x), 8):
            eps = factor * float(far[row])
            attack = pgd(eps=eps, objective=objective, steps=12)
            found = attack(Aim(network), x[row : row + 1], y[row : row + 1], draws(1))
            assert bool(network(found).argmax(dim=1) != y[row]) is expected


def test_an_objective_wants_its_classes() -> None:
    network = Linear(classes=2)
    x, y = images(network)
    with pytest.raises(ConfigError, match="the network has 2 classes"):
        pgd(objective="dlr")(Aim(network), x, y, draws(len(x)))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("return_point", {"return_point": "best"}),
        ("objective", {"objective": "cross"}),
        ("start", {"start": "middle"}),
        ("start", {"start": "corner", "norm": "l2"}),
        ("restarts", {"restarts": 0}),
        ("eot_samples", {"eot_samples": 0}),
    ],
)
def test_what_no_search_can_do_is_refused(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key}"):
        pgd(**changes)


def test_single_precision_stays_in_the_ball() -> None:
    network = conv()
    x, y = pictures(network)
    for attack in (pgd(eps=8 / 255), RandomFgsm("linf", 8 / 255, 1, 1.25, 1.0), pgd("l2", 0.5), pgd("l1", 3.0)):
        x_adv = attack(Aim(network), x, y, draws(len(x)))
        assert x_adv.dtype == torch.float32
        assert (attack.ball.norm(x_adv - x) <= attack.eps * (1 + 1e-6)).all()
