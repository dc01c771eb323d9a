"""DVERGE: distillation against a loop over single images; who learns from whom; one snapshot, one layer an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.dverge import Dverge, before
from atbench.models import Ensemble, Network
from atbench.models.activations import activation_modules
from atbench.models.residual import ResNet
from tests.support import reference, worlds
from tests.support.nets import build, images, small

EPS, STEP = 0.2, 0.03


def make(
    members: int = 3, given: TrainData | None = None, norm: str = "none", **options: Any
) -> tuple[Dverge, TrainData]:
    given = given or worlds.data()
    bn = options.pop("bn", "eval")
    ensemble = Ensemble([worlds.cnn(seed=seed, norm=norm) for seed in range(members)])
    settings = {"distill_eps": EPS, "distill_step": STEP, **options}
    method = Dverge(ensemble, worlds.attack(bn=bn), **settings)
    method.setup(given)
    worlds.start(method, given)
    return method, given


def at_layer(method: Dverge, layer: int) -> None:
    """Wind the clock to an epoch that draws `layer`."""
    method.clock.epoch = next(e for e in range(1000) if _drawn(method, e) == layer)


def _drawn(method: Dverge, epoch: int) -> int:
    method.clock.epoch = epoch
    return method.layer


def hidden(member: nn.Module, z: Tensor, layer: int) -> Tensor:
    """The output of a stage before pooling, which is what an activation is given where there are no norms, or the
    logits.
    """
    assert isinstance(member, Network)
    h = member.normalise(z)
    for stage in list(member.stages)[: layer + 1]:
        h = stage(h)
    return h if layer < len(member.stages) - 1 else member.head(h)


def slow(member: nn.Module, x: Tensor, other: Tensor, layer: int, momentum: float) -> Tensor:
    """One image: ten steps down the squared distance, along the sign of a momentum of normalised gradients."""
    z, velocity = x.clone(), torch.zeros_like(x)
    target = hidden(member, other[None], layer).detach()
    for _ in range(10):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.mse_loss(hidden(member, z[None], layer), target), z)
        velocity = momentum * velocity + grad / grad.abs().sum()
        z = torch.max(torch.min(z.detach() - STEP * velocity.sign(), x + EPS), x - EPS).clamp(0, 1)
    return z


@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_distillation_equals_a_slow_loop(layer: int, momentum: float) -> None:
    method, given = make(members=2, momentum=momentum)
    at_layer(method, layer)
    batch = method.perturb(given.batch(0, 0))
    other = given.stream("dverge", given.batch_size).batch(method.clock.epoch, 0).x
    for member, found in zip(method.members, batch.aux["distilled"], strict=True):
        for i in range(4):
            torch.testing.assert_close(
                found[i], slow(member, batch.x[i], other[i], layer, momentum), rtol=0, atol=1e-12
            )


def test_distilled_images_are_legal_and_nearer_in_features() -> None:
    method, given = make()
    nearer = []
    for epoch in range(4):
        method.clock.epoch = epoch
        batch = method.perturb(given.batch(epoch, 0))
        other = given.stream("dverge", given.batch_size).batch(epoch, 0).x
        for member, z in zip(method.members, batch.aux["distilled"], strict=True):
            assert (z - batch.x).abs().max() <= EPS + 1e-12 and z.min() >= 0 and z.max() <= 1

            def distance(a: Tensor, member: nn.Module = member, other: Tensor = other) -> Tensor:
                gap = hidden(member, a, method.layer) - hidden(member, other, method.layer)
                return gap.square().flatten(1).mean(dim=1)

            nearer.append(distance(z) <= distance(batch.x))
    assert torch.cat(nearer).double().mean() >= 0.95


def test_a_resnet_20_has_the_twenty_layers_of_the_authors() -> None:
    """Number 1 is conv1-bn, 2 to 19 are conv-bn of the blocks, every second with its shortcut, and 20 the logits."""
    network = build(ResNet, (3, 8, 8), blocks=(3, 3, 3), width=4, shortcut="conv", stem="small").double().eval()
    x = images(8)
    expected = [network.features(x, upto=1)]
    for stage in range(2, 11):
        block = network.stages[stage]
        conv1, bn1 = block.residual.conv1, block.residual.bn1  # type: ignore[union-attr]
        expected += [bn1(conv1(expected[-1].relu())), network.features(x, upto=stage)]  # type: ignore[operator]
    expected.append(network(x))
    assert len(expected) == 20 == len(activation_modules(network)) + 1
    for layer, features in enumerate(expected):
        assert torch.equal(before(network, layer, x), features)
    assert all(not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["wrn", "preact_bottleneck", "lenet", "convnet8"])
def test_layers_of_other_networks_are_what_their_activations_are_given(name: str) -> None:
    """And no layer behind it is run: running statistics there stay."""
    network = small(name).train()
    x = images(12 if name == "lenet" else 8)
    given: list[Tensor] = []
    hooks = [a.register_forward_pre_hook(lambda _, z: given.append(z[0].clone())) for a in activation_modules(network)]
    network(x)
    for hook in hooks:
        hook.remove()
    assert len(given) > 3
    for layer, features in enumerate(given):
        torch.testing.assert_close(before(network, layer, x), features, rtol=0, atol=1e-12)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before(network, 0, x)
    moved = [key for key, value in network.state_dict().items() if not torch.equal(value, state[key])]
    assert len([key for key in moved if key.endswith("running_mean")]) <= 1


def test_layer_is_one_an_epoch_and_any_of_them() -> None:
    method, _ = make()
    drawn = []
    for epoch in range(200):
        method.clock.epoch = epoch
        layers = set()
        for method.clock.step, method.clock.round in ((0, 0), (1, 0), (2, 1)):
            layers.add(method.layer)
        assert len(layers) == 1
        drawn.append(layers.pop())
    count = torch.bincount(torch.tensor(drawn), minlength=5)
    assert len(count) == 5 == len(activation_modules(method.members[0])) + 1 and count.min() > 20
    method.clock.seed = 1
    assert [_drawn(method, epoch) for epoch in range(200)] != drawn


def batch_for(method: Dverge, given: TrainData, member: int) -> Batch:
    return method.perturb(given.batch(0, 0)).with_adv(member=member)


@pytest.mark.parametrize("i", range(3))
def test_with_adversarial_training_each_member_is_attacked_alone(i: int) -> None:
    method, given = make(adversarial=True, weight=0.7)
    assert set(method.fixed_steps()) == {"attack", "method.distill_steps"}
    batch = batch_for(method, given, i)
    z = method.attack.begin(batch.x, 0.1, method.rng(f"member{i}"))
    for _ in range(3):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(method.members[i](z), batch.y), z)
        z = (batch.x + (z.detach() + 0.04 * grad.sign() - batch.x).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(batch.aux["attacked"][i], z, rtol=0, atol=1e-12)
    others = [x for j, x in enumerate(batch.aux["distilled"]) if j != i]
    expected = 0.7 * sum(reference.mean(reference.ce(method.members[i](x), batch.y)) for x in others)
    expected += reference.mean(reference.ce(method.members[i](z), batch.y))
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("i", range(3))
def test_loss_is_the_formula(i: int) -> None:
    method, given = make()
    batch = batch_for(method, given, i)
    expected = sum(
        reference.mean(reference.ce(method.members[i](x), batch.y))
        for j, x in enumerate(batch.aux["distilled"])
        if j != i
    )
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)


def test_a_member_learns_alone_and_not_from_its_own_images() -> None:
    method, given = make()
    batch = batch_for(method, given, 1)
    method.loss(batch).total.backward()
    learnt = [[p.grad for p in member.parameters()] for member in method.members]
    assert all(g is None for g in learnt[0] + learnt[2]) and all(g is not None for g in learnt[1])
    images = list(batch.aux["distilled"])
    images[1] = torch.rand_like(images[1])
    assert torch.equal(method.loss(batch.with_adv(distilled=images)).total, method.loss(batch).total)


def test_without_a_radius_every_other_member_brings_the_clean_loss() -> None:
    method, given = make(distill_eps=0.0)
    batch = batch_for(method, given, 2)
    clean = F.cross_entropy(method.members[2](batch.x), batch.y)
    assert method.loss(batch).total.item() == pytest.approx(2 * clean.item(), abs=1e-12)


def test_all_images_come_from_one_snapshot() -> None:
    """Perturbed once, before the first update; then a round a member."""
    method, given = make()
    expected = method.perturb(given.batch(0, 0)).aux["distilled"]
    seen = []
    for turn in method.inner_updates(given.batch(0, 0)):
        assert turn.perturb == (not seen) and turn.step
        if turn.perturb:
            turn.batch = method.perturb(turn.batch)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.1)
        seen.append(turn.batch.aux["member"])
        assert all(torch.equal(a, b) for a, b in zip(turn.batch.aux["distilled"], expected, strict=True))
    assert seen == [0, 1, 2]


def test_a_batch_is_an_update_of_each_member() -> None:
    method, given = make()
    before = worlds.snapshot(method)
    assert len(worlds.steps(method, given, 1)) == 3
    after = worlds.snapshot(method)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def test_source_images_are_another_shuffle() -> None:
    method, given = make()
    assert method.stream is not None
    order = torch.cat([method.stream.batch(0, step).index for step in range(given.steps)])
    assert torch.equal(order.sort().values, torch.arange(48))
    assert not torch.equal(order, torch.cat([given.batch(0, step).index for step in range(given.steps)]))


def test_members_begin_as_networks_of_their_own_seeds() -> None:
    method, _ = make()
    stages = method.pretraining()
    assert list(stages) == ["member0", "member1", "member2"] and len({stage.offset for stage in stages.values()}) == 3
    assert all(stage.overrides == ("model.members=1",) and stage.epochs == 1.0 for stage in stages.values())
    assert all(stage.method["_target_"] == "atbench.methods.standard.Standard" for stage in stages.values())
    trained: dict[str, nn.Module] = {name: worlds.cnn(seed=10 + k) for k, name in enumerate(stages)}
    method.load_pretrained(trained)
    for member, name in zip(method.members, stages, strict=True):
        assert worlds.same(dict(member.state_dict()), dict(trained[name].state_dict()))


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, given = make()
    before = worlds.snapshot(method)
    first, second = batch_for(method, given, 0), batch_for(method, given, 0)
    assert all(torch.equal(a, b) for a, b in zip(first.aux["distilled"], second.aux["distilled"], strict=True))
    assert torch.equal(method.loss(first).total, method.loss(second).total)
    assert worlds.same(before, worlds.snapshot(method))


def test_distils_in_the_attacks_mode() -> None:
    """`train`, the authors': running statistics of all members move, 1 + 10 times each, and nothing else does."""
    method, given = make(norm="batch", bn="train")
    at_layer(method, 4)
    before = worlds.snapshot(method)
    method.perturb(given.batch(0, 0))
    after = worlds.snapshot(method)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert all(after[name] == 11 for name in after if name.endswith("num_batches_tracked"))
    assert all(module.training for module in method.modules())


def test_resume_is_exact() -> None:
    straight, given = make()
    worlds.steps(straight, given, 6)
    before, _ = make()
    worlds.steps(before, given, 3)
    after, _ = make()
    after.load_state_dict(worlds.snapshot(before))
    worlds.steps(after, given, 3, first=3)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(after))


def test_state_is_the_ensembles_alone() -> None:
    method, _ = make()
    assert all(name.startswith("model.members.") for name in method.state_dict())


def test_pool_batches_and_their_sources_have_the_same_size() -> None:
    method, given = make(given=worlds.data(labelled=0.5, extra=0.5))
    worlds.steps(method, given, 2)


def test_what_is_no_ensemble_is_refused() -> None:
    for model in (worlds.cnn(), Ensemble([worlds.cnn()])):
        with pytest.raises(ConfigError, match=r"model\.members: 1"):
            Dverge(model, worlds.attack(), EPS, STEP)
