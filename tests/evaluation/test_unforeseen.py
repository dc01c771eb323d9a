"""Accuracy under distortions, UAR and mUAR: against a slow loop, refused by name, verified from what was kept."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.losses import wrong_classes
from atbench.attacks.unforeseen.distortion import search
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.data import Images
from atbench.errors import ConfigError
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, evaluate_model, summarize
from atbench.evaluation import unforeseen_calibrations as calibrations
from atbench.evaluation.eval_names import record_dir
from atbench.evaluation.field_checks import FREE
from atbench.evaluation.recompute import recompute_results
from atbench.evaluation.unforeseen import UnforeseenPlan, unforeseen_plan
from atbench.evaluation.unforeseen_calibrations import CALIBRATIONS, Calibration
from atbench.evaluation.verify import compare_records, verify_record
from atbench.interval import wilson
from atbench.runs.seeding import ExampleDraws

N, STEPS = 24, 3
SMALL = Calibration(
    "small images",
    16,
    {"linf": (1, 16), "l1": (40, 4000), "jpeg_linf": (0.25, 1), "elastic": (0.5, 2)},
    {"linf": (0.9, 0.5), "l1": (0.8, 0.6), "jpeg_linf": (0.9, 0.6), "elastic": (0.7, 0.3)},
)
ATTACKS = tuple(SMALL.sizes)


@pytest.fixture(autouse=True)
def small_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrations, "CALIBRATIONS", {**CALIBRATIONS, "small": SMALL})
    monkeypatch.setattr("atbench.evaluation.unforeseen.CALIBRATIONS", {**CALIBRATIONS, "small": SMALL})


class Net(nn.Module):
    """A small network on colour images of 16 pixels, with noise of its own of some size."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.noise = nn.Conv2d(3, 6, 5, stride=3), nn.Linear(96, 3), noise
        with torch.no_grad():
            self.last.weight.mul_(12)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(torch.tanh(self.first(2 * x - 1)).flatten(1))
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def images() -> Images:
    """Labelled as the network says, but for some."""
    x = torch.randint(0, 256, (N, 3, 16, 16), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    with torch.no_grad():
        y = Net()(x.float() / 255).argmax(dim=1)
    y[::6] = (y[::6] + 1) % 3
    return Images(x, y)


def plan(asked: UnforeseenPlan | None) -> Plan:
    return Plan(PGDConfig("linf", 0.01, 0.005, 2), [2], [], 2, unforeseen=asked)


def asked(data: str | None = "small", steps: int = STEPS) -> UnforeseenPlan:
    return UnforeseenPlan(ATTACKS, steps, "small", data)


def evaluated(
    network: nn.Module | None = None, batch: int = 10, of: UnforeseenPlan | None = None, **changes: Any
) -> EvalResults:
    return evaluate_model(EvalModel(network or Net(), batch), images(), plan(of or asked(**changes)))


def parts(found: EvalResults) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    content = json.loads(json.dumps(summarize(found)))
    return content, found.outcomes, found.examples


def wrong(network: nn.Module, *given: dict[str, Any], of: UnforeseenPlan | None = None) -> list[str]:
    """What a verification finds."""
    checks = verify_record(EvalModel(network, 7), images(), plan(of or asked()), *given)
    return [check.name for check in checks if not check.agrees]


def test_accuracies_are_those_of_a_slow_loop_and_uar_is_their_ratio() -> None:
    network, given = Net(), images()
    model = EvalModel(network, 1)
    found = summarize(evaluated())["unforeseen"]
    uars = []
    for name, part in zip(ATTACKS, found["attacks"], strict=True):
        accuracies = []
        for eps in SMALL.sizes[name]:
            right = 0
            for i in range(N):
                x, y = model.load(given, torch.tensor([i]))
                if int(network(x).argmax()) != int(y):
                    continue
                rng = ExampleDraws(0, "unforeseen", name, f"{eps:g}", index=torch.tensor([i]))
                distortion = DISTORTIONS[name](x, eps, rng)
                z = search(distortion, model, wrong_classes(y, 3, rng.at("class").uniform(y.float())), STEPS)
                with torch.no_grad():
                    right += int(network(distortion.image(z)).argmax()) == int(y)
            accuracies.append(right / N)
        assert [entry["accuracy"] for entry in part["sizes"]] == pytest.approx(accuracies)
        assert [entry["eps"] for entry in part["sizes"]] == list(SMALL.sizes[name])
        assert [entry["ata"] for entry in part["sizes"]] == list(SMALL.ata[name])
        assert part["name"] == name and part["mean"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
        assert part["uar"]["uar"] == pytest.approx(sum(accuracies) / sum(SMALL.ata[name]))
        low, high = wilson(N * sum(accuracies) / 2, N)
        assert part["uar"]["low"] == pytest.approx(2 * low / sum(SMALL.ata[name]))
        assert part["uar"]["high"] == pytest.approx(2 * high / sum(SMALL.ata[name]))
        uars.append(part["uar"]["uar"])
    assert found["muar"]["uar"] == pytest.approx(sum(uars) / 4) and len({round(uar, 6) for uar in uars}) > 1
    assert found["n"] == N and found["steps"] == STEPS
    assert found["gradients"] == 8 * STEPS * 20, "20 of 24 images are right without an attack"


def test_without_reference_accuracies_there_is_no_uar() -> None:
    content, arrays, kept = parts(evaluated(data=None))
    found = content["unforeseen"]
    assert found["data"] is None and found["muar"] is None and found["sizes_of"] == "small"
    assert all(attack["uar"] is None and attack["sizes"][0]["ata"] is None for attack in found["attacks"])
    assert "UAR is not defined" in found["note"]
    with_them = summarize(evaluated())["unforeseen"]
    for bare, known in zip(found["attacks"], with_them["attacks"], strict=True):
        assert [e["accuracy"] for e in bare["sizes"]] == [e["accuracy"] for e in known["sizes"]]
    assert wrong(Net(), content, arrays, kept, of=asked(None)) == []


def test_fewer_steps_than_the_reference_are_noted() -> None:
    assert summarize(evaluated())["unforeseen"]["note"] == "3 steps; the reference accuracies are of 200"


def test_it_changes_nothing_else_and_batches_do_not_matter() -> None:
    (content, arrays, kept), (_, again, kept_again) = parts(evaluated()), parts(evaluated(batch=24))
    bare = json.loads(json.dumps(summarize(evaluate_model(EvalModel(Net(), 10), images(), plan(None)))))
    without = {key: value for key, value in content.items() if key not in ("unforeseen", *FREE)}
    assert "unforeseen" not in bare and without == {k: v for k, v in bare.items() if k not in FREE}
    assert np.array_equal(arrays["unforeseen_robust"], again["unforeseen_robust"])
    assert arrays["unforeseen_robust"].shape == (4, 2, N)
    names = [name for name in kept if name.startswith("unforeseen.")]
    assert len(names) == 16
    for name in names:
        assert np.allclose(kept[name], kept_again[name], atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_an_honest_record_is_made_again_from_what_was_kept(noise: float) -> None:
    content, arrays, kept = parts(evaluated(Net(noise)))
    torch.manual_seed(7)
    assert (content["random"] is None) == (noise == 0)
    assert wrong(Net(noise), content, arrays, kept) == []


def test_a_part_of_the_images_is_verified_as_that_part() -> None:
    few = replace(plan(asked()), limit=9)
    content, arrays, kept = parts(evaluate_model(EvalModel(Net(), 10), images(), few))
    checks = verify_record(EvalModel(Net(), 7), images(), few, content, arrays, kept)
    assert content["unforeseen"]["n"] == 9 and [check.name for check in checks if not check.agrees] == []


def test_every_edited_figure_is_found() -> None:
    content, arrays, kept = parts(evaluated())
    again = recompute_results(EvalModel(Net(), 7), images(), plan(asked()), content, arrays, kept)
    for path in (
        ("n",), ("steps",), ("muar", "uar"), ("muar", "low"),
        *(("attacks", i, "uar", "uar") for i in range(4)),
        *(("attacks", i, "mean", "high") for i in range(4)),
        *(("attacks", i, "sizes", k, key) for i in range(4) for k in (0, 1) for key in ("accuracy", "eps", "ata")),
    ):  # fmt: skip
        lied = copy.deepcopy(content)
        node: Any = lied["unforeseen"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] += 0.01
        checks = compare_records(lied, arrays, kept, again)
        assert [check.agrees for check in checks].count(False) == 1, path
    bare = {key: value for key, value in content.items() if key != "unforeseen"}
    assert not all(check.agrees for check in compare_records(bare, arrays, kept, again))


@pytest.mark.slow
def test_every_edited_array_is_found() -> None:
    content, arrays, kept = parts(evaluated())
    flipped = arrays["unforeseen_robust"].copy()
    flipped[2, 1, 5] ^= True
    assert wrong(Net(), content, {**arrays, "unforeseen_robust": flipped}, kept) == ["unforeseen_robust"]
    for name in ATTACKS:
        key = f"unforeseen.{name}.1"
        rows, z = kept[f"{key}.rows"], kept[f"{key}.z"]
        assert len(rows) > 1, "a size at which the attack breaks some"
        outside, broken = z.copy(), z.copy()
        outside[0] += 1000
        broken[0].reshape(-1)[0] = np.nan
        lies = (
            {"rows": rows, "z": outside},
            {"rows": rows, "z": broken},
            {"rows": rows[1:], "z": z[1:]},
            {"rows": rows, "z": z[:, :1]},
            {"rows": rows + N, "z": z},
            {"rows": rows, "z": z[1:]},
        )
        if name != "jpeg_linf":  # whose z = 0 is not the image: colours are averaged
            lies = (*lies, {"rows": rows, "z": 0 * z})
        for lie in lies:
            edited = {**kept, **{f"{key}.{part}": value for part, value in lie.items()}}
            found = wrong(Net(), content, arrays, edited)
            assert "unforeseen_robust" in found and any(
                each.startswith(f"unforeseen.attacks.{name}.") for each in found
            )


def colour(side: int, channels: int = 3) -> Images:
    return Images(torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


def made(attacks: list[str], given: Images, data: str | None = None, source: str = "mine") -> UnforeseenPlan | None:
    return unforeseen_plan(attacks, 200, data, source, given, 0)


def test_what_an_attack_is_not_defined_for_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"eval\.unforeseen: jpeg_linf.*divisible by 16, mine has 1×28×28.*\[l1\]"):
        made(["l1", "jpeg_linf"], colour(28, 1))
    with pytest.raises(ConfigError, match=r"eval\.unforeseen: fog.*64 pixels or more"):
        made(["fog"], colour(32))
    with pytest.raises(ConfigError, match=r"eval\.unforeseen: gabor.*CIFAR-10, ResNet-56 has no sizes"):
        made(["linf", "gabor"], colour(64))
    with pytest.raises(ConfigError, match=r"eval\.unforeseen: elastik.*elastic"):
        made(["elastik"], colour(32))
    with pytest.raises(ConfigError, match=r"eval\.unforeseen_data: cifar100.*cifar10"):
        made(["linf"], colour(32), data="cifar100")
    assert made([], colour(32)) is None


def test_the_data_set_has_its_own_calibration_and_others_the_sizes_of_the_nearest() -> None:
    own = made(["linf", "elastic"], colour(32), source="cifar10")
    assert own is not None and (own.data, own.sizes) == ("cifar10", "cifar10")
    other, large = made(["linf"], colour(28, 1)), made(["linf", "fog", "snow", "gabor"], colour(224))
    assert other is not None and (other.data, other.sizes) == (None, "cifar10")
    assert large is not None and (large.data, large.sizes) == (None, "imagenet100")
    named = made(["fog"], colour(224), data="imagenet100")
    assert named is not None and named.data == "imagenet100"


def test_reference_accuracies_fall_with_the_size() -> None:
    for calibration in CALIBRATIONS.values():
        assert set(calibration.sizes) == set(calibration.ata) <= set(DISTORTIONS)
        for name, sizes in calibration.sizes.items():
            ata = calibration.ata[name]
            assert len(sizes) == len(ata) == 6 and list(sizes) == sorted(sizes)
            assert list(ata) == sorted(ata, reverse=True) and min(ata) > 0 and max(ata) < 1
            assert DISTORTIONS[name].refusal((3, calibration.side, calibration.side)) is None
    assert sum(CALIBRATIONS["cifar10"].ata["linf"]) == pytest.approx(4.0129)
    assert sum(CALIBRATIONS["imagenet100"].ata["fog"]) == pytest.approx(4.4958)


def test_a_record_that_does_not_know_the_keys_is_the_same_evaluation(tmp_path: Any) -> None:
    def config(**chosen: Any) -> dict[str, Any]:
        return {"seed": 0, "dataset": {}, "model": {}, "attack": {"norm": "linf", "eps": 0.1}, "eval": chosen}

    top = tmp_path / "evaluation"
    top.mkdir()
    (top / "best.json").write_text("{}")
    (top / "best.yaml").write_text(json.dumps(config(steps=[1])))
    new = {"steps": [1], "unforeseen": [], "unforeseen_steps": 200, "unforeseen_data": None}
    assert record_dir(tmp_path, config(**new), "x") == top
    assert record_dir(tmp_path, config(**{**new, "unforeseen": ["l1"]}), "x") == top / "x"
