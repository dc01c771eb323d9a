"""What holds for every attack in every norm that it is defined for: legal, sound, exact at the limits, reproducible."""

from __future__ import annotations

import pytest
import torch

from atbench.attacks import Attack, GradientAttack, ball
from atbench.config import registry
from atbench.errors import ConfigError
from tests.support.targets import CASES, GRADIENT, NAMES, NEAREST, Aim, Linear, distance, draws, images, kind, make

#: The median distance to another class, between two images' own, and an ε that covers every image of the box.
MIDDLE = {norm: float(distance(Linear(), *images(Linear()), norm).quantile(0.5)) for norm in ("linf", "l2", "l1")}
ALL = {"linf": 1.0, "l2": 6.0, "l1": 36.0}


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_answers_are_legal_and_touch_nothing(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network, low=0.0, high=1.0)
    before, weights = x.clone(), network.head.weight.detach().clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    attack = make(name, norm, 2 * MIDDLE[norm])
    torch.manual_seed(5)
    x_adv = attack(Aim(network), x, y, draws(len(x)))
    assert torch.equal(torch.rand(3), expected), "the global random state"
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert torch.isfinite(x_adv).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(x, before) and torch.equal(network.head.weight, weights) and network.head.weight.grad is None
    if not attack.minimal:
        assert (ball(norm).norm(x_adv - x) <= attack.eps * (1 + 1e-6)).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_without_a_radius_or_steps_the_answer_is_the_image(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network)
    for attack in (make(name, norm, 0.0), make(name, norm, MIDDLE[norm], steps=0)):
        aim = Aim(network)
        assert torch.equal(attack(aim, x, y, draws(len(x))), x) and aim.passes == 0
    assert len(make(name, norm, 0.1)(Aim(network), x[:0], y[:0], draws(0))) == 0


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_nothing_is_broken_that_the_closed_form_says_holds(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network)
    attack = make(name, norm, MIDDLE[norm])
    x_adv = attack(Aim(network), x, y, draws(len(x)))
    broken = network(x_adv).argmax(dim=1) != y
    far = distance(network, x, y, norm)
    assert (far[broken] <= ball(norm).norm(x_adv - x)[broken] * (1 + 1e-9)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), NEAREST)
def test_a_gradient_finds_what_is_well_within_reach(name: str, norm: str) -> None:
    """On a linear network the gradient points at the nearest image of another class."""
    network = Linear()
    x, y = images(network)
    far = distance(network, x, y, norm)
    attack = make(name, norm, 1.5 * MIDDLE[norm], small=False)
    x_adv = attack(Aim(network), x, y, draws(len(x)))
    within = ball(norm).norm(x_adv - x) <= attack.eps * (1 + 1e-6)
    broken = within & (network(x_adv).argmax(dim=1) != y)
    assert broken[far <= MIDDLE[norm]].all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), GRADIENT)
def test_a_radius_that_holds_every_image_breaks_all(name: str, norm: str) -> None:
    attack = make(name, norm, ALL[norm], small=False)
    network = Linear()
    x, y = images(network)
    assert (network(attack(Aim(network), x, y, draws(len(x)))).argmax(dim=1) != y).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_an_answer_does_not_depend_on_its_batch(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network)
    attack, rng = make(name, norm, MIDDLE[norm]), draws(len(x))
    whole = attack(Aim(network), x, y, rng)
    for rows in (*torch.arange(3).split(1), *torch.arange(len(x)).split(15)):
        part = attack(Aim(network), x[rows], y[rows], draws(len(x)).take(rows))
        # Where nothing was broken the best point counts: values that rounding alone tells apart lie 1e-8 apart in x.
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_the_same_seed_gives_the_same_answer(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network)
    answers = []
    for seed in (1, 2):
        attack = make(name, norm, MIDDLE[norm])
        torch.manual_seed(seed)  # what an attack draws comes from `rng`, never from the global state
        answers.append(attack(Aim(network), x, y, draws(len(x))))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_that_an_attack_is_not_defined_for_is_refused(name: str) -> None:
    for norm in {"linf", "l2", "l1"} - set(kind(name).norms):
        with pytest.raises(ConfigError, match=r"eval\.norm"):
            make(name, norm, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.every_pair("name", "norm")
def test_a_larger_ball_breaks_no_fewer(name: str, norm: str) -> None:
    network = Linear()
    x, y = images(network)
    counts = []
    for multiple in (0.0, 0.5, 1.0, 2.0, 4.0):
        attack = make(name, norm, multiple * MIDDLE[norm])
        x_adv = attack(Aim(network), x, y, draws(len(x)))
        within = ball(norm).norm(x_adv - x) <= attack.eps * (1 + 1e-6)
        counts.append(int((within & (network(x_adv).argmax(dim=1) != y)).sum()))
    assert counts[0] == 0 and counts == sorted(counts)


@pytest.mark.parametrize("entry", registry.entries("attacks", [registry.conf_dir()]), ids=lambda entry: entry["name"])
def test_an_option_says_whether_methods_can_train_with_it(entry: dict[str, str]) -> None:
    """`about.use`: a `GradientAttack` maximises the objective of a method; an `Attack` only evaluates."""
    target = kind(entry["name"])
    assert entry["use"] == ("train" if issubclass(target, GradientAttack) else "eval")
    assert issubclass(target, Attack) is (entry["use"] == "eval")


def test_the_table_of_attacks_shows_their_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.show("attacks", [registry.conf_dir()], as_json=False, survey=False) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:3] == ["name", "use", "family"]
    assert {row[0] for row in rows if row[1] == "train"} == {"pgd", "pgd_7", "fgsm"}
    assert {row[0] for row in rows if row[1] == "eval"} == set(NAMES)
    registry.show("methods", [registry.conf_dir()], as_json=False, survey=False)
    assert "use" not in capsys.readouterr().out.splitlines()[0].split()
