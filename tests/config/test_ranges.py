"""Numbers outside their range, and another attack than a method's own, are refused before anything is built."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, get_origin

import pytest

from atbench.config import instantiate, ranges, registry, validate, values
from atbench.config.instantiate import check_target, locate
from atbench.errors import ConfigError
from tests.support.configs import resolved

METHODS = registry.options("method", [registry.conf_dir()])
RANGES = [name for name, each in vars(ranges).items() if get_origin(each) is Annotated]
#: Arguments of methods that any number is good for: ρ and λ may be infinite, stages are counted from either end, and an
#: entropy may be negative.
ANY_NUMBER = {
    "adt_imp_am": {"entropy_threshold"},
    "ccat": {"rho"},
    "gair_fat": {"lam"},
    "gairat": {"lam"},
    **{name: {"bias"} for name in ("mail_at", "mail_mart", "mail_trades")},
    "ssdrl": {"lam"},
    "strong_adversary": {"layer"},
    "szegedy": {"layer"},
}
FROM_0, ABOVE_0, SHARE, COUNT = "a number from 0", "a number above 0", "a share from 0 to 1", "a whole number from 1"
BELOW_1 = "a number from 0 to below 1"
OUTSIDE = {
    "aaer": {"abnormal": (-1, FROM_0), "ce": (-2.5, FROM_0), "distance": (-1.5, FROM_0), "noise": (-1, FROM_0)},
    "acat": {"beta": (-11, FROM_0)},
    "adaad": {"alpha": (1.5, SHARE), "temperature": (0, ABOVE_0), "divisor": (0, ABOVE_0), "begin": (60, SHARE)},
    "adp": {"entropy": (-2, FROM_0), "diversity": (-0.5, FROM_0), "least_eps": (1.2, SHARE)},
    "adr": {
        "beta": (-6, FROM_0),
        "decay": (1, BELOW_1),
        "temperature_low": (0, ABOVE_0),
        "interpolation_high": (2, SHARE),
    },
    "adt_exp": {"entropy_weight": (-0.01, FROM_0), "step_size": (-0.3, FROM_0), "samples": (0, COUNT)},
    "adt_exp_am": {"entropy_weight": (-0.01, FROM_0), "generator_width": (0, COUNT)},
    "adt_imp_am": {"entropy_weight": (-1, FROM_0), "z_dim": (0, COUNT)},
    "adv_pretrain": {"pretrain_epochs": (0, ABOVE_0)},
    "ait": {"eps_y": (2, SHARE)},
    "alp": {"weight": (-0.5, FROM_0)},
    "arow": {"beta": (-7, FROM_0)},
    "ard": {"alpha": (1.5, SHARE), "temperature": (0, ABOVE_0), "divisor": (0, ABOVE_0)},
    "atas": {
        **{name: (-0.1, FROM_0) for name in ("scale", "min_step", "max_step")},
        **{"c": (0, ABOVE_0), "beta": (1.1, SHARE), "warmup": (5, SHARE), "reset": (10, SHARE)},
    },
    "atda": {"weight": (-1, FROM_0), "rate": (2, SHARE)},
    "avmixup": {"gamma": (-2, FROM_0), "clean_share": (1.5, SHARE), "vertex_share": (-0.1, SHARE)},
    "bat": {"beta": (0, ABOVE_0), "gamma": (0, ABOVE_0)},
    "cat_curriculum": {
        "max_strength": (-1, "a whole number from 0"),
        "patience": (10, SHARE),
        "threshold": (90, SHARE),
    },
    "cat_customized": {
        "eps_max": (0, ABOVE_0),
        "eta": (-0.01, FROM_0),
        "smoothing": (1.1, SHARE),
        "hinge": (-1, FROM_0),
    },
    "ccat": {"share": (1.5, SHARE)},
    "cfa": {"lambda_1": (-0.5, FROM_0), "beta": (-6, FROM_0), "begin": (0, "a share above 0, at most 1")},
    "clp": {"weight": (-0.5, FROM_0), "noise": (-0.5, FROM_0)},
    "consistency_at": {"weight": (-1, FROM_0), "temperature": (0, ABOVE_0), "begin": (100, SHARE)},
    "dajat": {"beta": (-11, FROM_0), "consistency": (-2, FROM_0)},
    "dkl": {"beta": (-20, FROM_0), "temperature": (0, ABOVE_0)},
    "dverge": {"distill_eps": (-0.07, FROM_0), "momentum": (-1, FROM_0), "weight": (-1, FROM_0)},
    "dynamic_at": {
        "c_max": (-0.5, FROM_0),
        "decay": (100, "a share above 0, at most 1"),
        "weighted_from": (2, SHARE),
    },
    "early_stop": {"patience": (0, "a share above 0, at most 1")},
    "eat": {"epochs": (0, ABOVE_0)},
    "elle": {"weight": (-1000, FROM_0), "sensitivity": (-2, FROM_0), "decay": (1.1, SHARE)},
    "fast_at": {"drop": (20, SHARE), "probe_steps": (0, COUNT), "probe_step_size": (-0.25, FROM_0)},
    "fat": {"tau": (-1, "a whole number from 0"), "milestones": ([50, 90], "a list of a share from 0 to 1")},
    "fat_mart": {"beta": (-6, FROM_0), "tau": (0.5, "a whole number from 0")},
    "fat_trades": {"beta": (-6, FROM_0), "milestones": ([30], "a list of a share from 0 to 1")},
    "feature_scatter": {
        "smoothing": (1.5, SHARE),
        "reg": (0, ABOVE_0),
        "clean_pass_every": (-1, "a whole number from 0"),
    },
    "fgsm_at": {"clean": (1.5, SHARE)},
    "fgsmr": {"curvature": (-1, FROM_0), "reach": (0, ABOVE_0), "power": (0, ABOVE_0)},
    "fgsm_mep": {"smoothing_target": (1.2, SHARE), "reset": (40, SHARE)},
    "fgsm_mep_cs": {"gamma": (-0.03, FROM_0), "milestones": ([100, 105], "a list of a share from 0 to 1")},
    "fgsm_pco": {"beta": (-1.5, FROM_0), "smoothing_target": (1.2, SHARE)},
    "fgsm_rs_cs": {"ratio": (0, ABOVE_0), "stride": (-1, "a whole number from 0")},
    "fgsm_cuap": {"momentum": (-0.3, FROM_0)},
    "fgsm_uap": {"consistency": (-10, FROM_0), "reach": (-1, FROM_0)},
    "fgsm_fuap": {"number": (0, COUNT)},
    "free_at": {"replays": (0, COUNT)},
    "gair_fat": {"begin": (60, SHARE), "tau": (-1, "a whole number from 0")},
    "gairat": {"begin": (60, SHARE)},
    "gal": {"coherence": (-0.5, FROM_0)},
    "gat": {"weight": (-10, FROM_0), "noise": (4, SHARE), "growth": (-4, FROM_0), "late": (86, SHARE)},
    "grad_align": {"weight": (-0.2, FROM_0)},
    "hat": {"beta": (-2.5, FROM_0), "reach": (-2, FROM_0)},
    "iaat": {"beta": (1.1, SHARE), "warmup": (10, SHARE), "gamma": (-0.01, FROM_0)},
    "iad_i": {"beta": (-0.1, FROM_0), "begin": (60, SHARE), "robust": (-1, FROM_0)},
    "iad_ii": {"beta": (-0.1, FROM_0), "begin": (40, SHARE), "clean": (-0.25, FROM_0)},
    "kd_swa": {"temperature": (0, ABOVE_0), "robust": (-0.6, FROM_0)},
    "kim_interval": {"checkpoints": (0, COUNT)},
    "kurakin_mixed_batch": {
        "share": (-0.1, SHARE),
        "weight": (0, ABOVE_0),
        "sigma": (0, ABOVE_0),
        "delay": (10000, SHARE),
    },
    "l1_penalty_at": {"penalty": (-1, FROM_0)},
    "lbgat": {"beta": (-6, FROM_0)},
    "liet": {"smoothing": (1.2, SHARE), "every": (0, COUNT)},
    "llr": {"linearity": (-4, FROM_0), "warmup": (500, SHARE)},
    "lsq": {"weight": (-0.5, FROM_0)},
    "mail_at": {"slope": (-10, FROM_0), "begin": (76, SHARE)},
    "mail_mart": {"beta": (-5, FROM_0), "slope": (-2, FROM_0), "begin": (76, SHARE)},
    "mail_trades": {"beta": (-5, FROM_0), "slope": (-2, FROM_0), "begin": (76, SHARE)},
    "mart": {"beta": (-5, FROM_0)},
    "mlcat": {"min_loss": (-1.5, FROM_0)},
    "mlcat_ls": {"min_loss": (-1.5, FROM_0)},
    "mma": {"d_max": (-0.1, FROM_0), "clean_weight": (2, SHARE), "bisections": (0, COUNT)},
    "msd": {
        "pixels": ([-1, 2], "a list of a number from 0"),
        "rel_path_length": ({"l1": -1}, "a mapping of a number from 0"),
    },
    "multi_grad": {"starts": (0, COUNT), "agree": (0, COUNT)},
    "multi_norm_avg": {"warmup": (2, SHARE), "steps": ({"l1": -1}, "a mapping of a whole number from 0")},
    "multi_norm_max": {"warmup": (-0.1, SHARE)},
    "nuat": {"weight": (-4.5, FROM_0), "noise": (4, SHARE), "rise": (0, "a share above 0, at most 1")},
    "oaat": {"mix": (1.2, SHARE), "large_eps": (-0.1, FROM_0), "decay": (1, "a number from 0 to below 1")},
    "pass": {"weight": (-0.1, FROM_0)},
    "pgd_at_te": {"weight": (-300, FROM_0), "momentum": (1, BELOW_1), "start": (89, SHARE)},
    "rebat": {"beta": (-1, FROM_0), "decay": (1, BELOW_1), "start": (105, SHARE), "strong_steps": (0, COUNT)},
    "rlfat": {"transfer": (-0.5, FROM_0), "blocks": (0, COUNT)},
    "rlfat_trades": {"beta": (-6, FROM_0), "blocks": (0, COUNT)},
    "rotation_ss": {"weight": (-0.5, FROM_0)},
    "rslad": {"alpha": (-0.1, SHARE), "divisor": (0, ABOVE_0)},
    "rst": {"beta": (-6, FROM_0)},
    "sads": {"dropout": (1, BELOW_1), "decay": (0, "a share above 0, at most 1")},
    "sat_r1": {"weight": (-0.2, FROM_0), "iterations": (0, COUNT)},
    "sat_r2": {"weight": (-5, FROM_0), "noise": (2, SHARE)},
    "sat_r3": {"weight": (-1, FROM_0), "tau": (-0.4, FROM_0), "low": (1.5, SHARE), "noise": (-0.1, SHARE)},
    "score": {"beta": (-4, FROM_0), "total_clip": (-1, FROM_0)},
    "seat": {"decay": (1, BELOW_1)},
    "ssdrl": {"gamma": (0, ABOVE_0), "classes": (0, COUNT)},
    "strong_adversary": {"share": (-0.3, FROM_0)},
    "szegedy": {
        "share": (1, BELOW_1),
        "pool_size": (0, "a share above 0, at most 1"),
        "renewal": (2, SHARE),
        "searches": (0, COUNT),
    },
    "tdat": {"weight": (-0.6, FROM_0), "floor": (1.5, SHARE)},
    "tla": {"margin": (-0.03, FROM_0), "negatives": (0, COUNT)},
    **{name: {"online": (-1, FROM_0), "fixed": (-1, FROM_0)} for name in ("uat_ft", "uat_ot", "uat_pp")},
    "trades": {"beta": (-6, FROM_0)},
    "trades_te": {"beta": (-6, FROM_0), "full": (149, SHARE)},
    "trs": {"similarity": (-40, FROM_0), "smoothness": (-2.5, FROM_0), "eps_end": (-0.03, FROM_0)},
    "yopo": {"m": (0, COUNT), "n": (-3, COUNT)},
}


class TestRanges:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["plus=ema", "plus.ema.decay=2"], r"plus\.ema\.decay: 2 — Ema wants a number from 0 to below 1"),
            (["plus=ema", "plus.ema.warmup=1"], r"plus\.ema\.warmup: 1 "),
            (["plus=swa", "plus.swa.start=1"], r"plus\.swa\.start: 1 "),
            (["plus=fawa", "plus.fawa.decay=1"], r"plus\.fawa\.decay: 1 "),
            (["plus=fawa", "plus.fawa.threshold=-1"], r"plus\.fawa\.threshold: -1 "),
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
            (["+attack.noise=-1"], r"attack\.noise: -1 "),
            (["+attack.momentum=-1"], r"attack\.momentum: -1 "),
            (["+attack.sparsity=3"], r"attack\.sparsity: 3 "),
            (["+attack.zeroed=35"], r"attack\.zeroed: 35 "),
            (["+attack.decay=-1"], r"attack\.decay: -1 "),
            (["+attack.rel_start_size=-2"], r"attack\.rel_start_size: -2 "),
            (["eval=auto", "eval.attacks.apgd_ce.rho=2"], r"eval\.attacks\.apgd_ce\.rho: 2 "),
            (["eval=auto", "eval.attacks.square.steps=-5"], r"eval\.attacks\.square\.steps: -5 "),
            (["method=trades", "method.beta=-6"], r"^method\.beta: -6 — Trades wants a number from 0"),
            (["model.width=0"], r"model\.width: 0 — CNN wants a whole number from 1"),
            (["dataset=cifar10", "dataset.augment=[{_target_: atbench.data.augment.PadCropFlip, pad: -1, flip: true}]"],
             r"dataset\.augment\.0\.pad: -1 "),
        ],
    )  # fmt: skip
    def test_a_number_outside_its_range_is_refused_by_its_key(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            validate.validate_config(resolved(*words))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.every_method("method")
    def test_every_number_of_a_method_has_a_range(self, method: str) -> None:
        node = values.plain(resolved(f"method={method}").method)
        parameters = inspect.signature(locate(node["_target_"], "method._target_")).parameters
        plain = {name for name, each in parameters.items() if re.search(r"\b(float|int)\b", str(each.annotation))}
        assert plain <= ANY_NUMBER.get(method, set())
        ranged = {name for name, each in parameters.items() if re.search("|".join(RANGES), str(each.annotation))}
        assert bool(ranged) == (method in OUTSIDE)
        for name, (value, wanted) in OUTSIDE.get(method, {}).items():
            said = rf"^method\.{name}: {re.escape(str(value))} — \w+ wants {wanted}"
            with pytest.raises(ConfigError, match=said):
                check_target({**node, name: value}, "method")

    def test_a_range_within_a_mapping(self) -> None:
        with pytest.raises(ConfigError, match=r"method\.rel_path_length.*a mapping of a number"):
            validate.validate_config(resolved("method=msd", "method.rel_path_length.l1=wide"))

    def test_a_groups_rate_of_nothing_is_doubtful(self) -> None:
        words = ("method=adt_exp_am", "train.groups.generator.optimizer.lr=0")
        assert validate.validate_config(resolved(*words)) == ["train.groups.generator.optimizer.lr: 0 trains nothing"]

    def test_a_factor_that_shortens_no_step(self) -> None:
        with pytest.raises(ConfigError, match=r"attack\.backtrack: 0\.5"):
            instantiate.build(resolved("+attack.return_point=best", "+attack.backtrack=0.5").attack, "attack")


class TestOwnAttack:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.every_method("method")
    def test_every_method_as_it_is_passes(self, method: str) -> None:
        validate.validate_config(resolved(f"method={method}", "attack.eps=8/255"))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["method=fgsm_at", "attack.steps=7"], r"attack\.steps: 7 — fgsm_at is the method that has 1 there"),
            (["method=fgsm_at", "attack.step_size=0.01"], r"attack\.step_size: 0\.01 "),
            (["method=fgsm_at", "attack.start=uniform"], r"attack\.start: uniform "),
            (["method=shaham_ro", "attack.steps=2"], r"attack\.steps: 2 — shaham_ro"),
            (["method=strong_adversary", "attack.steps=20"], r"attack\.steps: 20 — strong_adversary"),
            (["method=kurakin_mixed_batch", "attack.start=uniform"], r"attack\.start: uniform — kurakin_mixed_batch"),
            (["method=ccat", "attack.return_point=last", "attack.backtrack=0"], r"attack\.return_point: last — ccat"),
            (["method=llr", "attack.rule=steepest"], r"attack\.rule: steepest — llr"),
            (["experiment=paper/trades", "method=fgsm_at"], r"attack\.steps: 10 — fgsm_at"),
        ],
    )
    def test_another_attack_than_the_methods_own_is_refused(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            validate.validate_config(resolved(*words))

    @pytest.mark.parametrize("method", ["pgd_at", "trades", "mart"])
    def test_where_any_attack_is_meant_any_is_taken(self, method: str) -> None:
        validate.validate_config(
            resolved(f"method={method}", "attack.steps=1", "attack.start=zero", "attack.step_size=0.2")
        )

    def test_a_radius_of_nothing_is_no_other_attack(self) -> None:
        validate.validate_config(resolved("method=fgsm_at", "attack.eps=0"))
