"""Numbers outside their range, and another attack than a method's own, are refused before anything is built."""

from __future__ import annotations

import pytest

from atbench.config import instantiate, registry, validate
from atbench.errors import ConfigError
from tests.test_config import resolved

METHODS = registry.options("method", [registry.conf_dir()])


class TestRanges:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["plus=ema", "plus.ema.decay=2"], r"plus\.ema\.decay: 2 — Ema wants a number from 0 to below 1"),
            (["plus=ema", "plus.ema.warmup=1"], r"plus\.ema\.warmup: 1 "),
            (["plus=swa", "plus.swa.start=1"], r"plus\.swa\.start: 1 "),
            (["plus=awp", "plus.awp.gamma=-1"], r"plus\.awp\.gamma: -1 — WeightPerturbation wants a number from 0"),
            (["plus=awp", "plus.awp.warmup=7"], r"plus\.awp\.warmup: 7 "),
            (["train.schedule.warmup=7"], r"train\.schedule\.warmup: 7 — OneCycle wants a share from 0 to 1"),
            (["train.schedule.div=0"], r"train\.schedule\.div: 0 .*above 0"),
            (["recipe=rice", "train.schedule.milestones=[1/2,100]"], r"train\.schedule\.milestones.*share from 0 to 1"),
            (["recipe=rice", "train.schedule.gamma=-0.1"], r"train\.schedule\.gamma: -0\.1"),
            (["train.optimizer.lr=-0.1"], r"train\.optimizer\.lr: -0\.1"),
            (["train.optimizer.momentum=2"], r"train\.optimizer\.momentum: 2"),
            (["method=adt_exp_am", "train.groups.generator.optimizer.lr=-1"], r"generator\.optimizer\.lr: -1"),
            (["dataset.threat.l2.eps=-1"], r"dataset\.threat\.l2\.eps: -1"),
            (["attack.steps=0"], r"attack\.steps: 0 "),
            (["+attack.momentum=-1"], r"attack\.momentum: -1 "),
            (["+attack.sparsity=3"], r"attack\.sparsity: 3 "),
            (["eval=auto", "eval.attacks.apgd_ce.rho=2"], r"eval\.attacks\.apgd_ce\.rho: 2 "),
            (["eval=auto", "eval.attacks.square.steps=-5"], r"eval\.attacks\.square\.steps: -5 "),
            (["model.width=0"], r"model\.width: 0 — CNN wants a whole number from 1"),
            (["dataset=cifar10", "dataset.augment=[{_target_: atbench.data.augment.PadCropFlip, pad: -1, flip: true}]"],
             r"dataset\.augment\.0\.pad: -1 "),
        ],
    )  # fmt: skip
    def test_a_number_outside_its_range_is_refused_by_its_key(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            validate.check(resolved(*words))

    def test_a_range_within_a_mapping(self) -> None:
        with pytest.raises(ConfigError, match=r"method\.reach.*a mapping of a number"):
            validate.check(resolved("method=msd", "method.rel_path_length.l1=wide"))

    def test_a_groups_rate_of_nothing_is_doubtful(self) -> None:
        words = ("method=adt_exp_am", "train.groups.generator.optimizer.lr=0")
        assert validate.check(resolved(*words)) == ["train.groups.generator.optimizer.lr: 0 trains nothing"]

    def test_a_factor_that_shortens_no_step(self) -> None:
        with pytest.raises(ConfigError, match=r"attack\.backtrack: 0\.5"):
            instantiate.build(resolved("+attack.return_point=best", "+attack.backtrack=0.5").attack, "attack")


class TestOwnAttack:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_as_it_is_passes(self, method: str) -> None:
        validate.check(resolved(f"method={method}", "attack.eps=8/255"))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["method=fgsm_at", "attack.steps=7"], r"attack\.steps: 7 — fgsm_at is the method that has 1 there"),
            (["method=fgsm_at", "attack.step_size=0.01"], r"attack\.step_size: 0\.01 "),
            (["method=fgsm_at", "attack.start=uniform"], r"attack\.start: uniform "),
            (["method=shaham_ro", "attack.steps=2"], r"attack\.steps: 2 — shaham_ro"),
            (["method=strong_adversary", "attack.steps=20"], r"attack\.steps: 20 — strong_adversary"),
            (["method=kurakin_mixed_batch", "attack.start=uniform"], r"attack\.start: uniform — kurakin_mixed_batch"),
            (["method=ccat", "attack.return_point=last", "attack.backtrack=0"], r"attack\.keep: last — ccat"),
            (["method=llr", "attack.rule=steepest"], r"attack\.rule: steepest — llr"),
            (["experiment=paper/trades", "method=fgsm_at"], r"attack\.steps: 10 — fgsm_at"),
        ],
    )
    def test_another_attack_than_the_methods_own_is_refused(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            validate.check(resolved(*words))

    @pytest.mark.parametrize("method", ["pgd_at", "trades", "mart"])
    def test_where_any_attack_is_meant_any_is_taken(self, method: str) -> None:
        validate.check(resolved(f"method={method}", "attack.steps=1", "attack.start=zero", "attack.step_size=0.2"))

    def test_a_radius_of_nothing_is_no_other_attack(self) -> None:
        validate.check(resolved("method=fgsm_at", "attack.eps=0"))
