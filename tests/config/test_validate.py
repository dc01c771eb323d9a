"""What is known of a run before it begins: what cannot be built, steps that do not fit, images in both parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atbench.config import instantiate, validate
from atbench.data import Images
from atbench.data.digits import digits
from atbench.data.lazy_images import DecoderPool, LazyImages
from atbench.data.overlap import count_shared
from atbench.errors import ConfigError
from atbench.training import World
from atbench.workflows import factory
from tests.support.configs import node, resolved

HERE = World(torch.device("cpu"))


class TestConstructors:
    """A ValueError, TypeError or RuntimeError from building anything names the key and the value."""

    @pytest.mark.parametrize(
        ("target", "options", "path", "said"),
        [
            ("torch.nn.Conv2d", {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "groups": 2}, "model",
             r"^model: .*groups=2.* — Conv2d cannot be built \(ValueError: "),
            ("torch.nn.BatchNorm2d", {"num_features": -3}, "model", r"^model\.num_features: -3 .*RuntimeError"),
            ("torch.nn.Softplus", {"beta": 1, "treshold": 2}, "model", r"^model\.treshold.*did you mean 'threshold'"),
            ("torch.nn.Dropout", {"p": 1.5}, "model", r"^model\.p: 1\.5 .*ValueError"),
        ],
    )  # fmt: skip
    def test_of_torch(self, target: str, options: dict[str, Any], path: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            instantiate.build(node(target, **options), path)

    def test_of_the_users(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "ours_failing.py").write_text(
            "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, width):\n        1 / width\n"
        )
        monkeypatch.setattr("sys.path", [str(here)])
        monkeypatch.setenv("ATBENCH_TRUSTED", "")
        instantiate.trust_folders(here)
        with pytest.raises(ConfigError, match=r"model: width=0 — Net cannot be built \(ZeroDivisionError"):
            instantiate.build({"_target_": "ours_failing.Net", "width": 0}, "model")

    def test_an_optimizer_that_is_built_later(self) -> None:
        cfg = resolved("method=pgd_at", "recipe=adam", "+train.optimizer.eps=-1", "model.width=4")
        source = digits()
        method = factory.make_method(cfg, factory.make_model(cfg, source), factory.make_data(cfg, source, HERE), HERE)
        with pytest.raises(ConfigError, match=r"train\.optimizer\.eps: -1\.?0? .*ValueError"):
            factory.make_groups(cfg, method)

    @pytest.mark.parametrize(
        ("words", "changed", "said"),
        [
            (["+model.std=[0]"], {}, r"model\.std: \[0\] .*above 0"),
            (["+model.mean=[0.5,0.5,0.5]"], {}, r"model\.mean: .*3 numbers for images of 1 channel"),
            ([], {"std": (0.0,)}, r"dataset\.source\.std: \[0\.0\]"),
            ([], {"mean": (0.1, 0.2)}, r"dataset\.source\.mean: .*2 numbers"),
            ([], {"mean": (float("nan"),)}, r"dataset\.source\.mean: \[nan\]"),
        ],
    )
    def test_a_normalisation_that_is_none(self, words: list[str], changed: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            factory.make_model(resolved(*words), replace(digits(), **changed))


def doubts(*words: str) -> list[str]:
    """What is said of a run before it begins, on digits and without images in common."""
    cfg, source = resolved("model.width=4", *words), digits()
    assert validate.validate_config(cfg) == []
    data = factory.make_data(cfg, source, HERE)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, HERE)
    return factory.training_warnings(method, data, source.test())


class TestDoubts:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["attack.step_size=0.001"], "attack: 10 steps of 0.001 move at most 0.01: they cannot reach the edge"),
            (["attack.step_size=0.5"], "attack: a step of 0.5 is wider than the whole ball"),
            (["attack.step_size=0"], "attack: 10 steps of 0 move at most 0"),
            (["attack.steps=4", "attack.step_size=0.05"], None),
            (["attack.eps=0", "attack.step_size=0"], None),
            # The reach is that of the method's own steps, whatever those of the run's attack are.
            (["method=yopo", "method.m=1", "method.n=1", "attack.step_size=0.2/3"],
             "method.m x method.n: 1 steps of 0.06667"),
            (["method=msd", "method.rel_path_length.l2=1/3"], "method.rel_path_length.l2: 10 steps"),
            (["method=multi_norm_max", "method.rel_path_length.l1=1/3"], "method.rel_path_length.l1: 10 steps"),
            (["method=dverge", "method.distill_steps=3"], "method.distill_steps: 3 steps"),
            *(([f"method={name}", "attack.step_size=0.001"], None) for name in (
                "standard", "clp", "lsq", "free_at", "fgsm_mep", "adt_exp", "adt_exp_am", "mma", "iaat",
                "cat_curriculum", "msd")),
            (["method=llr", "attack.eps=0.03"], None),
        ],
    )  # fmt: skip
    @pytest.mark.slow
    def test_steps_that_do_not_fit_the_ball(self, words: list[str], said: str | None) -> None:
        found = doubts(*words)
        assert len(found) == (said is not None), found
        assert said is None or found[0].startswith(said)

    def test_images_that_are_in_both_parts_are_counted(self) -> None:
        source = digits()
        test = source.test()
        both = Images(torch.cat([test.x[:7], source.train.x[:50]]), torch.cat([test.y[:7], source.train.y[:50]]))
        assert count_shared(both, test) == 7 and count_shared(source.train, test) == 0

    def test_a_run_says_so(self) -> None:
        source = digits()
        test = source.test()
        mixed = Images(torch.cat([source.train.x, test.x[:9]]), torch.cat([source.train.y, test.y[:9]]))
        changed = replace(source, train=mixed)
        cfg = resolved("method=standard", "model.width=4")
        data = factory.make_data(cfg, changed, HERE)
        method = factory.make_method(cfg, factory.make_model(cfg, changed), data, HERE)
        said = factory.training_warnings(method, data, test)
        assert sum(int(each.split()[1]) for each in said) == 9 and all("test images are in" in each for each in said)


def test_picture_files_that_are_in_both_parts_are_counted(tmp_path: Path) -> None:
    files = []
    for number, content in enumerate((b"one", b"two", b"one", b"four")):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(content)

    def pictures(*names: Path) -> Images:
        return Images(
            LazyImages([str(name) for name in names], 8, 8, 0, DecoderPool(1)), torch.zeros(len(names)).long()
        )

    assert count_shared(pictures(*files[:2]), pictures(*files[2:])) == 1


@pytest.mark.parametrize(
    ("name", "every", "said"),
    [
        ("epoch_4", 2, None),
        ("last", None, None),
        ("epoch_3", 2, "training writes best, last and epoch_2, epoch_4"),
        ("epoch_6", 2, "training writes best, last and epoch_2, epoch_4"),
        ("epoch_2", None, "training writes best, last; set train.checkpoint.every"),
    ],
)
def test_checkpoints_to_evaluate_are_those_that_training_writes(name: str, every: int | None, said: str | None) -> None:
    cfg = {"device": "cpu", "train": {"epochs": 5, "checkpoint": {"every": every}}, "eval": {"checkpoints": [name]}}
    if said is None:
        assert validate.validate_config(cfg) == []
    else:
        with pytest.raises(ConfigError, match=f"eval.checkpoints: {name} — {said}"):
            validate.validate_config(cfg)
