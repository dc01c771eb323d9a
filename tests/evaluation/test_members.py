"""Transfer between members: PGD on each against a slow loop, judged by all; verified from the kept images."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Images
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, evaluate_model, summarize
from atbench.evaluation.field_checks import FREE
from atbench.evaluation.verify import verify_record
from atbench.interval import accuracy_figures
from atbench.models import Ensemble

CLASSES, SIDE, EPS, STEPS = 3, 6, 0.03, 4


class Tanh(nn.Module):
    """A small smooth network, with noise of its own of some size."""

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.noise = nn.Linear(SIDE * SIDE, 16), nn.Linear(16, CLASSES), noise
        with torch.no_grad():
            self.last.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(torch.tanh(2 * self.first(x.flatten(1) - 0.5)))
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def ensemble(noise: float = 0.0) -> Ensemble:
    """A member, one that is much like it, and a third that is less so."""
    members, rng = [Tanh(1, noise) for _ in range(3)], torch.Generator().manual_seed(3)
    with torch.no_grad():
        for member, distance in zip(members, (0.0, 0.02, 0.15), strict=True):
            member.first.weight.add_(distance * torch.randn(16, SIDE * SIDE, generator=rng))
    return Ensemble(members)


def images(n: int = 120) -> Images:
    """Labelled by the first member, so that each member is right about a part of them."""
    x = torch.randint(20, 235, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        return Images(x, Tanh(1)(x.float() / 255).argmax(dim=1))


def plan(**changes: Any) -> Plan:
    threat = PGDConfig("linf", EPS, EPS / 2, STEPS, "zero", restarts=3)
    return Plan(threat, [STEPS], [0, 1], STEPS, **{"members": True, **changes})


def evaluated(network: nn.Module, batch: int = 32, **changes: Any) -> EvalResults:
    return evaluate_model(EvalModel(network, batch), images(), plan(**changes))


def parts(found: EvalResults) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    content = json.loads(json.dumps(summarize(found)))
    return content, found.outcomes, found.examples


def wrong(network: nn.Module, *given: dict[str, Any], **changes: Any) -> list[str]:
    """What a verification finds."""
    checks = verify_record(EvalModel(network, 50), images(), plan(**changes), *given)
    return [check.name for check in checks if not check.agrees]


def slow_pgd(member: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The last iterate of one image, whether the member was fooled before or not."""
    x_adv = x.clone()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(member(x_adv), y), x_adv)
        x_adv = (x_adv.detach() + EPS / 2 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return x_adv


def test_the_matrix_is_that_of_a_slow_loop() -> None:
    network, given = ensemble(), images()
    x, y = given.floats(torch.arange(len(given))), given.y
    shared = [i for i in range(len(given)) if all(int(m(x[i : i + 1]).argmax()) == y[i] for m in network.members)]
    content = summarize(evaluated(network))["members"]
    assert content["n"] == len(shared) and 20 < len(shared) < len(given)
    assert content["attack"] == {
        "name": "pgd", "norm": "linf", "eps": EPS, "step_size": EPS / 2, "steps": STEPS, "start": "zero",
        "restarts": 1, "objective": "ce", "seed": 0,
    }  # fmt: skip
    for attacked, row in zip(network.members, content["robust"], strict=True):
        right = [0, 0, 0]
        for i in shared:
            x_adv = slow_pgd(attacked, x[i : i + 1], y[i : i + 1])
            for j, member in enumerate(network.members):
                right[j] += int(member(x_adv).argmax()) == int(y[i])
        assert row == [accuracy_figures(count, len(shared)) for count in right]
    robust = np.array([[entry["accuracy"] for entry in row] for row in content["robust"]])
    assert 0 < robust.min() < robust.max() < 1 and not np.allclose(robust, robust.T), "a matrix that tells rows apart"
    assert content["gradients"] == 3 * STEPS * len(shared)
    assert content["forwards"] == 3 * (STEPS + 3) * len(shared), "a pass is one image through one member"


def test_it_changes_nothing_else_and_batches_do_not_matter() -> None:
    (content, arrays, kept), (bare, *_) = parts(evaluated(ensemble())), parts(evaluated(ensemble(), members=False))
    assert "members" not in bare and {k: v for k, v in content.items() if k not in ("members", *FREE)} == {
        k: v for k, v in bare.items() if k not in FREE
    }
    _, again, images_again = parts(evaluated(ensemble(), batch=7))
    for name in ("members_right", "members_fooled"):
        assert np.array_equal(arrays[name], again[name])
    assert all(np.array_equal(kept[f"member{i}.rows"], images_again[f"member{i}.rows"]) for i in range(3))


def test_a_single_network_has_no_matrix() -> None:
    content, arrays, kept = parts(evaluated(Tanh(1)))
    assert "members" not in content and not any(name.startswith("member") for name in (*arrays, *kept))
    assert wrong(Tanh(1), content, arrays, kept) == []


def test_without_an_image_that_all_have_right_there_is_none_to_attack() -> None:
    network = ensemble()
    with torch.no_grad():
        for number, member in enumerate(network.members):
            member.last.bias[number] += 100
    content, arrays, kept = parts(evaluated(network))
    assert content["members"]["n"] == 0 and content["members"]["robust"] == []
    assert wrong(network, content, arrays, kept) == []


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_honest_record_is_made_again_from_its_images(noise: float) -> None:
    content, arrays, kept = parts(evaluated(ensemble(noise)))
    torch.manual_seed(7)
    assert (content["random"] is None) == (noise == 0)
    assert wrong(ensemble(noise), content, arrays, kept) == []


def test_a_part_of_the_images_is_verified_as_that_part() -> None:
    content, arrays, kept = parts(evaluated(ensemble(), limit=50))
    assert content["n"] == 50 and wrong(ensemble(), content, arrays, kept, limit=50) == []


def test_every_edited_figure_is_found() -> None:
    content, arrays, kept = parts(evaluated(ensemble()))
    for path in (
        ("n",),
        ("attack", "eps"),
        ("attack", "steps"),
        *(("robust", i, j, "low") for i in range(3) for j in range(3)),
    ):
        lied = copy.deepcopy(content)
        node: Any = lied["members"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] += 0.01
        assert wrong(ensemble(), lied, arrays, kept) == [".".join(map(str, ("members", *path)))]
    assert wrong(ensemble(), {k: v for k, v in content.items() if k != "members"}, arrays, kept)


def test_every_edited_array_is_found() -> None:
    content, arrays, kept = parts(evaluated(ensemble()))
    for name in ("members_right", "members_fooled"):
        flipped = arrays[name].copy()
        flipped.reshape(-1)[17] ^= True
        assert wrong(ensemble(), content, {**arrays, name: flipped}, kept)
    for number in range(3):
        rows, x_adv = kept[f"member{number}.rows"], kept[f"member{number}.x_adv"]
        outside, broken = x_adv.copy(), x_adv.copy()
        outside[0] += np.sign(outside[0] - 0.5) * -0.1
        broken[0, 0, 0, 0] = np.nan
        lies = (
            {"rows": rows[::-1].copy(), "x_adv": outside},
            {"rows": rows, "x_adv": broken},
            {"rows": rows[1:], "x_adv": x_adv[1:]},
        )
        for lie in lies:
            edited = {**kept, **{f"member{number}.{key}": value for key, value in lie.items()}}
            found = wrong(ensemble(), content, arrays, edited)
            assert "members_fooled" in found and any(name.startswith(f"members.robust.{number}.") for name in found)


def test_an_evaluation_that_did_not_know_of_members_stays_valid() -> None:
    content, arrays, kept = parts(evaluated(ensemble(), members=False))
    assert wrong(ensemble(), content, arrays, kept, members=False) == []
