"""What a run says that it will take."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from atbench.bench.steps import forward_operations, operations
from atbench.data.digits import digits
from atbench.evaluation import EvalModel, Plan, evaluate_model
from atbench.training import World
from atbench.workflows import factory, forecast
from atbench.workflows.eval_plan import make_plan
from atbench.workflows.forecast import (
    Forecast,
    attack_passes,
    estimate,
    evaluation_passes,
    least_passes,
    validation_passes,
)
from tests.support.configs import resolved
from tests.support.contract import Log, configuration

HERE = World(torch.device("cpu"))
WORDS = ("eval.steps=[1,3]", "eval.eps_steps=2", "eval.eps_grid=[0,0.5,1]", "eval.restarts=2", "eval.limit=8")


def plan_of(*words: str) -> Plan:
    return make_plan(resolved("method=pgd_at", *words), digits(), HERE, digits().test())


def passes_of(plan: Plan, network: torch.nn.Module, eps: float = 1e-9) -> float:
    """Forward passes, a gradient counted twice, of an evaluation in a ball so small that no image breaks."""
    tiny = replace(plan, threat=replace(plan.threat, eps=eps, step_size=eps), eps_grid=plan.eps_grid, audit=0)
    results = evaluate_model(EvalModel(network, 64), digits().test(), tiny)
    return float(results.facts["forward_passes"] + results.facts["gradient_passes"])


class AllRight(torch.nn.Module):
    """Right on the test digits, whatever is added to an image: the label is looked up by what the image rounds to."""

    def __init__(self) -> None:
        super().__init__()
        test = digits().test()
        self.images, self.labels = test.floats().flatten(1), test.y
        self.scale = torch.nn.Parameter(torch.tensor(1e4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(x.flatten(1), self.images).square()
        scores = torch.full((len(x), 10), torch.inf).scatter_reduce(
            1, self.labels.expand(len(x), -1), distance, reduce="amin"
        )
        return -self.scale * scores


def test_an_evaluation_that_breaks_nothing_takes_what_is_said() -> None:
    """At most: what is judged again after each search is not counted, and comes to little beside the searches."""
    plan = plan_of(*WORDS, "eval.steps=[40]", "eval.eps_steps=20")
    said, taken = evaluation_passes(plan, 450), passes_of(plan, AllRight())
    assert said == 8 * (1 + 2 * 40 * 2 + 2 * 20 * 2)
    assert 0.95 < said / taken < 1.05


def test_a_limit_and_further_attacks_count() -> None:
    plan = plan_of(*WORDS)
    assert evaluation_passes(plan, 450) == 8 * (1 + 2 * 3 * 2 + 2 * 2 * 2)
    assert evaluation_passes(replace(plan, limit=None), 450) == 450 / 8 * evaluation_passes(plan, 450)


def test_every_attack_has_a_cost() -> None:
    attacks = {name: attack for name, (attack, _) in plan_of("eval=auto").attacks.items()}
    costs = {name: attack_passes(attack) for name, attack in attacks.items()}
    assert costs == {"apgd_ce": 200, "apgd_t": 1800, "fab_t": 1800, "square": 5000}


@pytest.mark.parametrize("words", [("pgd_at",), ("fat",), ("iaat", "attack.bn=eval")], ids=" ".join)
def test_at_most_is_true_where_a_step_passes_over_images(words: tuple[str, ...]) -> None:
    """In operations in place of seconds: a pass is told to cost no less than it does, whatever the search left out."""
    cfg = configuration(*words, "model.norm=none", "attack.steps=10", "train.epochs=2")
    data = factory.make_data(cfg, digits(), HERE)
    method = factory.make_method(cfg, factory.make_model(cfg, digits()), data, HERE)
    trainer = factory.make_trainer(cfg, method, data, HERE, Log(), lambda: 0)
    method.clock.epoch = 1  # past a warm-up
    step = operations(method, data.batch(1, 0)) / data.batch_size
    a_pass = forward_operations(method.model, data.source.shape)
    told = estimate(trainer, 0.0, step / least_passes(method), epochs=1, steps=0, passes=1.0)
    assert told.evaluation >= 0.9 * a_pass
    assert told.validation >= 0.9 * a_pass * validation_passes(trainer)


@pytest.mark.parametrize("words", [(), ("train.selection.every=2",)])
def test_the_sentence_comes_once_and_of_the_steps(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step: the training left, and the rest by passes of the method's least cost."""
    now = [0.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    cfg = configuration("pgd_at", "train.epochs=4", "attack.steps=10", *words)
    data = factory.make_data(cfg, digits(), HERE)
    method = factory.make_method(cfg, factory.make_model(cfg, digits()), data, HERE)
    trainer = factory.make_trainer(cfg, method, data, HERE, Log(), lambda: 0)
    steps, clock, said = trainer.data.steps, method.clock, []
    told = Forecast(trainer, passes=23 * data.batch_size * 60)
    for clock.step in range(1, steps + 1):
        now[0] += 2.0
        said.append(told.step())
    (sentence,) = filter(None, said)
    at = said.index(sentence) + 1
    assert at == min(steps, 13)
    times = re.findall(r"(?:training|at most) ([^,;]+)", sentence)
    training, validation, evaluation = times
    assert training == forecast.duration(2.0 * (4 * steps - at)) and evaluation == "2 min 00 s"
    often = 4 if not words else 2
    a_pass = 2.0 / (data.batch_size * 23)
    assert validation == forecast.duration(a_pass * often * validation_passes(trainer))
    assert sentence.startswith("estimate  training") and re.search(r"memory so far [\d.]+ (MB|GB)$", sentence)
