"""EAT: the image of a source against a loop over single images; who is drawn; what stays static; masks of dropout."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import Objective, cross_entropy
from atbench.data import TrainData
from atbench.methods import Stage
from atbench.methods.eat import Eat, most_likely
from atbench.methods.fgsm_at import FgsmAt
from atbench.models import attack_mode
from tests.support import nets, reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero", "bn": "batch"}


def make(
    networks: dict[str, nn.Module] | None = None,
    model: nn.Module | None = None,
    given: TrainData | None = None,
    **own: Any,
) -> tuple[Eat, TrainData]:
    """EAT with these static sources, by default a CNN and a linear network; `own` changes the attack."""
    networks = {"cnn": worlds.cnn(seed=5), "linear": worlds.linear()} if networks is None else networks
    given, left = given or worlds.data(), list(networks.values())
    target = own.pop("target", "prediction")
    method = Eat(
        model or worlds.cnn(),
        worlds.attack(**{**ONE_STEP, **own}),
        lambda stage: left.pop(0),
        {name: [] for name in networks},
        target=target,
    )
    worlds.start(method, given)
    return method, given


def drawn(method: Eat, wanted: nn.Module) -> None:
    """Move the clock on to a step whose source is `wanted`."""
    while method.source() is not wanted:
        method.clock.step += 1


@pytest.mark.parametrize("name", ["cnn", "linear", "model"])
def test_the_image_is_a_step_up_the_sources_loss_of_its_own_prediction(name: str) -> None:
    method, given = make()
    source = method.model if name == "model" else method.sources[name]
    drawn(method, source)
    batch = method.perturb(given.batch(0, 0))
    for i in range(len(batch)):
        x = batch.x[i : i + 1].clone().requires_grad_()
        logits = source(x)
        slope = torch.autograd.grad(-logits.log_softmax(1)[0, logits.argmax()], x)[0]
        expected = (batch.x[i : i + 1] + 0.1 * slope.sign()).clamp(0, 1)
        torch.testing.assert_close(batch.x_adv[i : i + 1], expected, rtol=0, atol=1e-14)
    assert (source(batch.x).argmax(dim=1) != batch.y).any(), "nothing would tell the prediction from the label"


def test_loss_is_half_clean_and_half_adversarial() -> None:
    method, given = make()
    batch = method.perturb(given.batch(0, 0))
    clean, adv = (reference.mean(reference.ce(method.model(x), batch.y)) for x in (batch.x, batch.x_adv))
    assert method.loss(batch).total.item() == pytest.approx((clean + adv) / 2, rel=1e-12)
    exact, measured = reference.slopes(method.model, lambda: method.loss(batch).total)
    assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("target", ["prediction", "label"])
def test_without_sources_it_is_fgsm_training_to_the_bit(target: str) -> None:
    method, given = make({}, target=target)
    other = FgsmAt(worlds.cnn(), worlds.attack(**ONE_STEP), 0.5, target)
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_on_top_of_it_pgd_from_the_sources() -> None:
    """Several steps from a random start up the loss of the labels: PGD on the source, with the run's draws."""
    method, given = make(steps=3, step_size=0.04, start="uniform", target="label")
    source = method.sources["cnn"]
    drawn(method, source)
    batch = given.batch(0, 0)
    expected = method.attack(Objective(source, cross_entropy, batch.y), batch.x, rng=method.rng())
    assert torch.equal(method.perturb(batch).x_adv, expected)


def test_classes_that_tie_share_the_prediction() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    assert most_likely(logits).tolist() == [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
    source = worlds.linear()
    with torch.no_grad():
        source.head.weight[2], source.head.bias[2] = source.head.weight[1], source.head.bias[1]
        source.head.bias[:2] -= torch.tensor([50.0, 0.0])
        source.head.bias[2] = source.head.bias[1]
    method, given = make({"tied": source})
    drawn(method, method.sources["tied"])
    batch = given.batch(0, 0)
    p = source(batch.x).softmax(dim=1)
    slope = p @ source.head.weight - (source.head.weight[1] + source.head.weight[2]) / 2
    expected = (batch.x + 0.1 * slope.sign().view_as(batch.x)).clamp(0, 1)
    far = slope.abs().view_as(batch.x) > 1e-9
    torch.testing.assert_close(method.perturb(batch).x_adv[far], expected[far], rtol=0, atol=1e-12)


def test_each_network_is_the_source_of_its_share_of_batches() -> None:
    """Of 10,000 draws within four deviations of 1/(n + 1), the trained network among them."""
    method, _ = make()
    names = {id(method.model): "model", **{id(net): name for name, net in method.sources.items()}}
    count: Counter[str] = Counter()
    for step in range(10_000):
        method.clock.epoch, method.clock.step = divmod(step, 100)
        count[names[id(method.source())]] += 1
    deviation = math.sqrt(10_000 * (1 / 3) * (2 / 3))
    assert set(count) == {"cnn", "linear", "model"}
    assert all(abs(each - 10_000 / 3) < 4 * deviation for each in count.values())


def test_all_processes_take_the_same_source() -> None:
    (first, _), (second, _) = make(), make()
    second.clock.rank = 1
    for method in (first, second):
        method.clock.world = 2
    for step in range(20):
        first.clock.step = second.clock.step = step
        places = [[*method.sources.values(), method.model].index(method.source()) for method in (first, second)]
        assert places[0] == places[1]


@pytest.mark.parametrize("bn", ["eval", "train", "batch"])
def test_sources_are_static(bn: str) -> None:
    """Weights and running statistics stay to the bit over an epoch, whatever the mode; the network's do not."""
    method, given = make({"cnn": worlds.cnn(seed=5, norm="batch")}, worlds.cnn(norm="batch"), bn=bn)
    before = worlds.snapshot(method)
    worlds.steps(method, given, 2 * given.steps)
    after = worlds.snapshot(method)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("sources."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("model."))
    assert list(method.groups()) == ["model"]
    assert not any(parameter.requires_grad for parameter in method.sources.parameters())
    assert all(parameter.grad is None for parameter in method.sources.parameters())


def dropout_net(seed: int = 0, **options: Any) -> nn.Module:
    settings = {"convs": ((4, 3, 1, 0),), "hidden": (32,), "drop_features": 0.5, "drop_hidden": 0.5, **options}
    make_net, _, _ = nets.SMALL["eat_mnist"]
    return nets.build(make_net, worlds.SHAPE, 3, seed, **settings).double()


class Masks:
    """What every forward of a dropout layer kept, in order."""

    def __init__(self, network: nn.Module) -> None:
        self.kept: list[Tensor] = []
        layer = network.stages.out.drop
        layer.register_forward_hook(lambda _, inputs, out: self.kept.append((out != 0) | (inputs[0] == 0)))


def test_dropout_is_active_in_a_source_and_its_masks_are_not_the_updates() -> None:
    method, given = make({"cnn": dropout_net(5)}, dropout_net())
    for source in (method.sources["cnn"], method.model):
        drawn(method, source)
        crafted, updated = Masks(source), Masks(method.model)
        torch.manual_seed(7)  # as the trainer does before a batch
        batch = method.perturb(given.batch(0, 0))
        if source is method.model:
            updated.kept.clear()
        method.loss(batch)
        assert len(crafted.kept) == (1 if source is not method.model else 3) and len(updated.kept) == 2
        masks = [crafted.kept[0], *updated.kept]
        assert not any(mask.all() for mask in masks), "nothing was dropped"
        assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
        torch.manual_seed(7)
        assert torch.equal(method.perturb(batch).x_adv, batch.x_adv), "a repeated search draws the same"


def test_without_train_mode_nothing_is_dropped() -> None:
    method, given = make({"cnn": dropout_net(5)}, bn="eval")
    source = method.sources["cnn"]
    drawn(method, source)
    kept = Masks(source)
    method.perturb(given.batch(0, 0))
    assert all(mask.all() for mask in kept.kept) and source.training


def test_pixels_that_the_source_drops_stay_clean() -> None:
    given = worlds.data(worlds.source(inset=0.2))
    method, _ = make({"cnn": dropout_net(5, drop_input=0.5)}, given=given)
    source, seen = method.sources["cnn"], []
    source.drop_input.register_forward_hook(lambda _, inputs, out: seen.append(out == 0))
    drawn(method, source)
    batch = method.perturb(given.batch(0, 0))
    (dropped,) = seen
    assert 0.3 < dropped.double().mean() < 0.7
    assert torch.equal(batch.x_adv[dropped], batch.x[dropped])
    assert (batch.x_adv != batch.x)[~dropped].double().mean() > 0.8, "where no unit saw a pixel it stays as well"


def test_a_source_is_a_run_of_its_own_or_a_finished_one() -> None:
    sources = {"same": [], "other": ["model=lenet", "model.kernel=3"], "there": "runs/there"}
    asked: list[Stage] = []

    def network(stage: Stage) -> nn.Module:
        asked.append(stage)
        return worlds.linear()

    method = Eat(worlds.cnn(), worlds.attack(), network, sources, epochs=0.25)
    stages = method.pretraining()
    assert list(stages) == list(sources) and asked == list(stages.values())
    same, other, there = stages.values()
    assert same.overrides == () and other.overrides == ("model=lenet", "model.kernel=3")
    assert there == Stage(checkpoint="runs/there", live=True) and there.method is None
    for stage in (same, other):
        assert stage.method == {"_target_": "atbench.methods.standard.Standard"}
        assert stage.epochs == 0.25 and stage.live and not stage.best, "the last weights, dropout active"
    assert len({0, same.offset, other.offset}) == 3


def test_weights_are_taken_over_and_come_back_with_the_state() -> None:
    method, _ = make()
    trained: dict[str, nn.Module] = {"cnn": worlds.cnn(seed=9), "linear": worlds.linear(seed=9)}
    method.load_pretrained(trained)
    assert all(worlds.same(dict(net.state_dict()), trained[name].state_dict()) for name, net in method.sources.items())
    other, _ = make()
    other.load_state_dict(method.state_dict())
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_batch_statistics_are_crafting_ones() -> None:
    """In mode `batch` images of the network itself are those of its batch statistics, which are not counted."""
    method, given = make({}, worlds.cnn(norm="batch"))
    batch = given.batch(0, 0)
    before = worlds.snapshot(method)
    x_adv = method.perturb(batch).x_adv
    assert worlds.same(before, worlds.snapshot(method))
    with attack_mode(method, "eval", freeze=False):
        x = batch.x.clone().requires_grad_()
        slope = torch.autograd.grad(method.model(x).log_softmax(1).amax(1).sum(), x)[0]
    assert not torch.equal(x_adv, (batch.x - 0.1 * slope.sign()).clamp(0, 1))


def test_contract() -> None:
    method, given = make()
    for source in (method.sources["linear"], method.model):
        drawn(method, source)
        batch = worlds.check_pure(method, given.batch(0, 0))
        assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make()[0], given)
    worlds.check_ranks(lambda share: make({}, given=share)[0])
