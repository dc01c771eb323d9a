"""Every preset of evaluation can be made for every data set's threats, and is what its name says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from atbench.config import registry, validate, values
from atbench.errors import ConfigError
from atbench.evaluation import Plan
from atbench.training import World
from atbench.workflows import factory
from atbench.workflows.eval_plan import make_plan
from tests.support.configs import composed, resolved

PRESETS = registry.options("eval", [registry.conf_dir()])


def planned(*words: str) -> tuple[DictConfig, Plan]:
    cfg = resolved("method=pgd_at", *words)
    validate.validate_config(cfg)
    source = factory.make_source(cfg)
    return cfg, make_plan(cfg, source, World(torch.device("cpu")), source.test())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.every_pair("preset", "norm")
def test_every_preset_can_be_made_in_every_norm(preset: str, norm: str) -> None:
    defined = ["eval.unforeseen=[linf,l2,l1,elastic]"] if preset == "unforeseen" else []  # for images as digits are
    cfg, plan = planned(f"eval={preset}", f"eval.norm={norm}", *defined)
    eps = cfg.dataset.threat[norm].eps if norm != cfg.attack.norm else cfg.attack.eps
    assert (plan.threat.norm, plan.threat.eps) == (norm, eps)
    assert all((attack.norm, attack.eps) == (norm, eps) for attack, _ in plan.attacks.values())
    assert plan.steps or plan.attacks
    assert norm not in plan.norms and all(its.norm == other for other, its in plan.norms.items())


def test_members_of_an_ensemble_are_attacked_unless_told_otherwise_or_older() -> None:
    cfg, plan = planned("eval=smoke", "eval.restarts=3", "model.members=2")
    assert plan.members and plan.member_attack == replace(plan.threat, restarts=1)
    assert not planned("eval=smoke", "eval.members=false")[1].members
    whole, source = values.plain(cfg), factory.make_source(cfg)
    older = OmegaConf.create({**whole, "eval": {k: v for k, v in whole["eval"].items() if k != "members"}})
    assert not make_plan(older, source, World(torch.device("cpu")), source.test()).members


def test_unforeseen_refuses_what_is_not_defined_for_the_images_or_is_older() -> None:
    with pytest.raises(ConfigError, match=r"eval\.unforeseen: jpeg_linf.*digits has 1×8×8.*\[linf,l2,l1,elastic\]"):
        planned("eval=unforeseen")
    cfg, plan = planned("eval=standard", "eval.unforeseen=[l1]", "eval.unforeseen_steps=7")
    assert plan.unforeseen is not None and (plan.unforeseen.attacks, plan.unforeseen.steps) == (("l1",), 7)
    assert (plan.unforeseen.data, plan.unforeseen.sizes) == (None, "cifar10")
    assert planned("eval=standard")[1].unforeseen is None
    whole, source = values.plain(cfg), factory.make_source(cfg)
    older = {key: value for key, value in whole["eval"].items() if not key.startswith("unforeseen")}
    plan = make_plan(OmegaConf.create({**whole, "eval": older}), source, World(torch.device("cpu")), source.test())
    assert plan.unforeseen is None


def test_auto_is_autoattack() -> None:
    _, plan = planned("eval=auto")
    assert list(plan.attacks) == ["apgd_ce", "apgd_t", "fab_t", "square"] and plan.sequential and not plan.steps
    assert [attack.steps for attack, _ in plan.attacks.values()] == [100, 100, 100, 5000]
    _, plan = planned("eval=auto_plus")
    assert list(plan.attacks) == ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]
    assert [settings.get("restarts") for _, settings in plan.attacks.values()][:3] == [5, 5, 5]


def test_the_radius_that_is_typed_counts_for_all() -> None:
    _, plan = planned("eval=masked", "eval.eps=1/10")
    assert plan.threat.eps == 0.1 and all(attack.eps == 0.1 for attack, _ in plan.attacks.values())
    assert plan.threat.step_size == pytest.approx(0.025), "the data set's ratio of step size to ε"


def test_rejection_stands_on_held_out_images_and_attacks_in_the_threat() -> None:
    cfg, plan = planned("eval=reject", "eval.norm=l2", "eval.reject_steps=7")
    assert plan.reject is not None and plan.reject.share == 0.99
    held = factory.make_data(cfg, factory.make_source(cfg), World(torch.device("cpu"))).validation
    assert torch.equal(plan.reject.held.x, held.x) and torch.equal(plan.reject.held.y, held.y)
    attack = plan.reject.attack
    assert (attack.norm, attack.eps, attack.steps) == ("l2", plan.threat.eps, 7)
    assert planned("eval=standard")[1].reject is None


def test_a_rejection_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.attacks\.confident"):
        planned("eval=reject", "+attack@eval.attacks.confident=confident")
    with pytest.raises(ConfigError, match=r"eval\.reject: 1\.5"):
        planned("eval=reject", "eval.reject=1.5")
    cfg = resolved("method=pgd_at", "eval=reject")
    source = replace(factory.make_source(cfg), validation=0)
    with pytest.raises(ConfigError, match=r"eval\.reject: 0\.99"):
        make_plan(cfg, source, World(torch.device("cpu")), source.test())


@pytest.mark.parametrize("preset", PRESETS)
def test_an_experiment_s_evaluation_may_be_another_preset(preset: str) -> None:
    assert composed("experiment=cpu", f"eval={preset}").eval.about.name == preset
