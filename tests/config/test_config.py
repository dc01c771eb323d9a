"""Fractions, resolution, checks, and the one place that builds objects."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from atbench.config import instantiate, validate, values
from atbench.errors import ConfigError
from tests.support.configs import composed, node, resolved

SGD = "torch.optim.SGD"
SEARCH = "atbench.attacks.ascent.gradient_ascent.GradientAttack"
LINF = {"norm": "linf", "eps": 0.1, "steps": 1, "step_size": 0.1}
PIECEWISE = "atbench.training.schedules.Piecewise"


class TestResolve:
    def test_fractions_become_floats_wherever_they_stand(self) -> None:
        words = [
            "attack.eps=8/255",
            "train.time_limit=1/2",
            "+train.groups.x={a: [1/4, b]}",
            "train.label_smoothing=1/10",
        ]
        cfg = resolved(*words)
        assert cfg.attack.eps == 8 / 255 and cfg.train.time_limit == 0.5 and cfg.train.label_smoothing == 0.1
        assert values.plain(cfg)["train"]["groups"]["x"]["a"] == [0.25, "b"]

    def test_a_threat_follows_the_norm(self) -> None:
        assert resolved("attack.norm=l2").attack.eps == 1.0
        assert resolved("attack=fgsm", "attack.eps=4/255").attack.step_size == 4 / 255

    def test_paths_and_what_is_told_stay_text(self) -> None:
        cfg = resolved("runs=8/255", "name=1/2", "+dataset.about.ratio=1/2")
        assert (cfg.runs, cfg.name, cfg.dataset.about.ratio) == ("8/255", "1/2", "1/2")

    def test_times(self) -> None:
        cfg = resolved("attack.eps=8/255", "attack.step_size='${times:${attack.eps},1.25}'")
        assert math.isclose(cfg.attack.step_size, 10 / 255)
        assert (
            values.resolve(OmegaConf.create({"a": "8/255", "b": "${times:${a},1/2}", "c": "${times:4,3/2}"})).b
            == 4 / 255
        )
        with pytest.raises(ConfigError, match="not a pair of numbers"):
            resolved("attack.step_size='${times:${attack.norm},2}'")

    def test_weight_decay_is_a_number(self) -> None:
        """YAML 1.1 reads 5e-4, without a point, as text."""
        assert resolved().train.optimizer.weight_decay == 5e-4

    def test_the_result_can_neither_change_nor_miss(self) -> None:
        cfg = resolved()
        with pytest.raises(Exception, match="read-only"):
            cfg.seed = 1
        with pytest.raises(Exception, match="not in struct"):
            _ = cfg.sede

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"attack\.eps"):
            resolved("attack.eps=???")

    def test_an_interpolation_into_nothing_names_the_near_miss(self) -> None:
        with pytest.raises(ConfigError, match=r"attack\.eps.*dataset\.threat\.lnf.*did you mean 'linf'"):
            resolved("attack.norm=lnf")

    def test_division_by_zero(self) -> None:
        with pytest.raises(ConfigError, match="8/0"):
            resolved("attack.eps=8/0")


class TestBuild:
    def test_drops_what_is_no_argument_and_adds_what_is_given(self) -> None:
        attack = instantiate.build(node(SEARCH, norm="linf", steps=2, step_size=0.1), "attack", eps=0.3)
        assert (attack.norm, attack.steps, attack.eps) == ("linf", 2, 0.3)

    def test_partial(self) -> None:
        make = instantiate.build(node(SGD, _partial_=True, lr=0.1), "train.optimizer")
        assert isinstance(make, functools.partial)
        assert make.func is torch.optim.SGD and make.keywords == {"lr": 0.1}

    def test_nested_nodes_and_lists_are_built_and_plain(self) -> None:
        options = OmegaConf.create({"args": [1]})
        inner = OmegaConf.create(node(PIECEWISE, milestones=[0.75, 0.5], gamma=0.1))
        layers = {"_target_": "torch.nn.ModuleDict", "modules": {"a": {"_target_": "torch.nn.ReLU"}}}
        built = instantiate.build(layers, "model")
        assert isinstance(built["a"], torch.nn.ReLU) and options.args == [1]
        assert type(instantiate.build(inner, "train.schedule").milestones) is list

    def test_a_node_stays_one_where_settings_are_wanted(self) -> None:
        given = {"model": torch.nn.Linear(1, 1), "attack": instantiate.build(node(SEARCH, **LINF), "attack")}
        teacher = {"_target_": "torch.nn.ReLU"}
        asked = []
        given["network"] = lambda changes: asked.append(changes) or torch.nn.ReLU()
        instantiate.build(OmegaConf.create(node("atbench.methods.lbgat.Lbgat", teacher=teacher)), "method", **given)
        assert asked == [teacher]

    def test_the_members_of_a_model_are_the_runs_business(self) -> None:
        given = {"shape": (1, 8, 8), "classes": 10, "mean": (0.0,), "std": (1.0,)}
        assert instantiate.build(node("atbench.models.cnn.CNN", members=3, width=8), "model", **given)
        with pytest.raises(ConfigError, match=r"method\.teacher\.members"):
            instantiate.build(node("atbench.models.cnn.CNN", members=3, width=8), "method.teacher", **given)

    @pytest.mark.parametrize(
        ("options", "given", "said"),
        [
            ({"stpes": 3}, {}, r"attack\.stpes: 3 — GradientAttack takes no 'stpes'; did you mean 'steps'"),
            ({"steps": "8"}, {}, r"attack\.steps: '8' — GradientAttack wants a whole number"),
            ({"steps": 2.5}, {}, "wants a whole number"),
            ({"steps": True}, {}, "wants a whole number"),
            ({"eps": "big"}, {}, "wants a number"),
            ({"norm": 2}, {}, "wants a text"),
            ({"start": None}, {}, "wants a text"),
            ({"eps": 0.1}, {"eps": 0.2}, "the program gives this argument itself"),
            ({}, {"teacher": 1}, "takes no 'teacher'"),
            ({}, {}, r"needs 'norm'"),
        ],
    )
    def test_arguments_that_do_not_fit(self, options: dict[str, Any], given: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            instantiate.build(node(SEARCH, **options), "attack", **given)

    def test_an_integer_is_a_number(self) -> None:
        assert instantiate.build(node(SEARCH, norm="linf", eps=1, steps=1, step_size=1), "attack").eps == 1

    def test_lists_are_looked_into(self) -> None:
        with pytest.raises(ConfigError, match=r"schedule\.milestones.*a list of a share"):
            instantiate.build(node(PIECEWISE, milestones=[0.5, "late"], gamma=0.1), "train.schedule")

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "subprocess.Popen",
            "builtins.eval",
            "antigravity.webbrowser",
            "atbench.cli.main",
            "atbench.runs.run_dir.write_text",
            "atbench.data.dataset.hashlib.new",  # an alias in an allowed module
            "atbench.errors.ConfigError",
            "torch.load",
            "torch.hub.load",
            "torch.optim.optimizer.functools.partial",
            "torch.nn.Embedding.from_pretrained",  # neither a class nor a function
            "yaml.unsafe_load",
        ],
    )
    def test_what_a_config_may_not_build(self, target: str) -> None:
        with pytest.raises(ConfigError, match=r"may not build|neither a class nor a function"):
            instantiate.build({"_target_": target}, "method")
        assert "antigravity" not in sys.modules

    def test_a_mistyped_target(self) -> None:
        for name in ("atbench.training.schedules.Piecewize", "atbench.training.schedulers.Piecewise"):
            with pytest.raises(
                ConfigError, match=r"schedule\._target_.*did you mean 'atbench\..*schedules\.Piecewise'"
            ):
                instantiate.build({"_target_": name}, "train.schedule")


class TestTrust:
    def test_only_files_below_a_trusted_folder(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "ours_trusted.py").write_text("from torch import nn\nclass Ours(nn.Module): pass\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
        with pytest.raises(ConfigError, match="may not build"):
            instantiate.build({"_target_": "ours_trusted.Ours"}, "model")
        assert "ours_trusted" not in sys.modules  # not even imported
        monkeypatch.setenv("ATBENCH_TRUSTED", "")
        instantiate.trust_folders(here)
        assert type(instantiate.build({"_target_": "ours_trusted.Ours"}, "model")).__name__ == "Ours"

    def test_an_environment_inside_a_trusted_folder_is_not_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATBENCH_TRUSTED", "")
        monkeypatch.setattr(sys, "path", list(sys.path))
        instantiate.trust_folders(Path("/"))
        for target in ("yaml.unsafe_load", "shutil.rmtree"):
            with pytest.raises(ConfigError, match="may not build"):
                instantiate.build({"_target_": target}, "method")

    def test_an_error_inside_the_users_file_is_shown(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "ours_broken.py").write_text("import there_is_no_such_thing\n")
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("ATBENCH_TRUSTED", "")
        instantiate.trust_folders(here)
        with pytest.raises(ModuleNotFoundError, match="there_is_no_such_thing"):
            instantiate.build({"_target_": "ours_broken.Ours"}, "method")


class TestCheck:
    @pytest.mark.parametrize(
        "words",
        [[], ["attack=fgsm", "method=pgd_at"], ["method=standard", "plus=[awp,ema,swa]", "logger=none", "eval=smoke"]],
    )
    def test_what_we_ship_is_sound(self, words: list[str]) -> None:
        assert validate.validate_config(resolved(*words)) == []

    def test_eval_is_sound(self) -> None:
        assert validate.validate_config(values.resolve(composed("target=runs/x", verb="eval"))) == []

    @pytest.mark.parametrize(
        ("word", "said"),
        [
            ("attack.eps=8", r"attack\.eps: 8 .*did you mean attack\.eps=8/255\?"),
            ("dataset.threat.linf.eps=8", r"attack\.eps: 8 "),
            ("attack.eps=-0.1", r"attack\.eps: -0\.1"),
            ("attack.eps=nan", r"attack\.eps"),
            ("attack.steps=ten", r"attack\.steps: 'ten'"),
            ("+method.bata=3", r"method\.bata: 3 .*'beta'"),
            ("+train.optimizer.momentun=0.9", r"train\.optimizer\.momentun.*'momentum'"),
            (
                "+plus.awp={_target_: atbench.training.weight_perturbation.WeightPerturbation, gama: 1}",
                r"plus\.awp\.gama.*'gamma'",
            ),
            ("train.epochs=0", r"train\.epochs: 0"),
            ("train.batch_size=-1", r"train\.batch_size: -1"),
            ("train.precision.attack=bf61", r"train\.precision\.attack: bf61 .*'bf16'"),
            ("train.channels_last=1", r"train\.channels_last: 1"),
            ("train.capture=on_cuda", r"train\.capture: on_cuda"),
            ("train.weight_decay_on=wieghts", r"train\.weight_decay_on.*'weights'"),
            ("train.time_limit=soon", r"train\.time_limit: soon .*number"),
            ("train.label_smoothing=1", r"train\.label_smoothing"),
            ("train.margin=-0.2", r"train\.margin: -0\.2 .*must be a number from 0"),
            ("train.extra_data.labelled=0", r"train\.extra_data\.labelled"),
            ("eval.steps=[1,-2]", r"eval\.steps: -2"),
            ("eval.limit=0", r"eval\.limit: 0"),
            ("seed=-1", r"seed: -1"),
            ("device=cdua", r"device: cdua .*'cuda'"),
            ("device=cuda:x", r"device: cuda:x"),
        ],
    )
    def test_what_is_refused(self, word: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            validate.validate_config(resolved(word))

    def test_an_option_that_the_method_ignores_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="PgdAt takes no 'beta'"):
            validate.validate_config(resolved("method=pgd_at", "+method.beta=6"))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["attack.norm=l2", "attack.eps=0.2"], "tiny in L2"),
            (["attack.norm=l2"], None),
            (["train.optimizer.lr=0"], "trains nothing"),
            (["attack.eps=0"], None),
        ],
    )
    def test_what_is_doubtful_is_said_once(self, words: list[str], said: str | None) -> None:
        warnings = validate.validate_config(resolved(*words))
        assert len(warnings) == (said is not None)
        assert said is None or said in warnings[0]
