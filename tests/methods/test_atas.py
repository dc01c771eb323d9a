"""ATAS: step sizes, the moving norm and the perturbation on the padded canvas, against a loop over single images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.config import validate
from atbench.data import Batch, EdgePad, PadCropFlip, TrainData
from atbench.errors import ConfigError
from atbench.methods.atas import Atas
from tests.support import reference, worlds
from tests.support.configs import resolved

EPS = 0.1
#: What the authors have at 8/255, in shares of ε.
SIZES: dict[str, Any] = {"scale": 2 * EPS, "min_step": EPS / 2, "max_step": 1.75 * EPS}
PAD = 2


def make(given: TrainData | None = None, epochs: int = 6, **options: Any) -> tuple[Atas, TrainData]:
    given = given or worlds.data(augment=PadCropFlip(PAD, True))
    attack = worlds.attack(eps=EPS, steps=1, step_size=EPS, norm=options.pop("norm", "linf"))
    method = Atas(worlds.cnn(), attack, **{**SIZES, "warmup": 0.0, "reset": 1.0, **options})
    worlds.start(method, given, epochs)
    method.setup(given)
    return method, given


def window(canvas: Tensor, batch: Batch, i: int) -> Tensor:
    """The pixels of a canvas (C, H+2p, W+2p) that the view of example i shows: writing to it writes to the canvas."""
    assert batch.view is not None
    top, left = int(batch.view.top[i]), int(batch.view.left[i])
    return canvas[:, top : top + 8, left : left + 8]


def mirrored(image: Tensor, batch: Batch, i: int) -> Tensor:
    """An image flipped as example i is."""
    assert batch.view is not None
    return image.flip(2) if batch.view.flip[i] else image


def slow_gradient(network: nn.Module, start: Tensor, y: int, batch: int) -> Tensor:
    """∇ of −log p_y / B at one image."""
    z = start.clone().requires_grad_()
    return torch.autograd.grad(-network(z[None]).log_softmax(dim=1)[0, y] / batch, z)[0]


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_image_norm_and_canvas_follow_the_formula(warmup: float) -> None:
    """Six batches of four to an epoch, image by image, with crops and flips that differ from epoch to epoch."""
    method, given = make(warmup=warmup, c=0.001)
    delta, v = method.delta.clone(), method.v.clone()
    sizes = set()
    for position in range(6):
        method.clock.epoch, method.clock.step = divmod(position, given.steps)
        batch = given.batch(method.clock.epoch, method.clock.step)
        found = method.perturb(batch)
        for i, (x, y, row) in enumerate(zip(batch.x, batch.y.tolist(), batch.index.tolist(), strict=True)):
            start = (x + mirrored(window(delta[row], batch, i), batch, i)).clamp(0, 1)
            grad = slow_gradient(method.model, start, y, len(batch))
            size = EPS
            if not warmup:
                v[row] = 0.5 * v[row] + 0.5 * sum(g * g for g in grad.flatten().tolist())
                size = min(max(0.2 / (1 + math.sqrt(float(v[row])) / 0.001), 0.05), 0.175)
            sizes.add(size)
            x_adv = (x + (start + size * grad.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
            torch.testing.assert_close(found.x_adv[i], x_adv, rtol=0, atol=1e-12)
            window(delta[row], batch, i).copy_(mirrored(x_adv - x, batch, i))
        method.after_update(found)
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)
        torch.testing.assert_close(method.v, v, rtol=0, atol=1e-12)
    assert len(sizes) == 1 if warmup else len(sizes) > 20


def test_loss_is_the_cross_entropy_at_the_image() -> None:
    method, given = make()
    batch = method.perturb(given.batch(0, 0))
    loss, logits = method.loss(batch), method.model(batch.x_adv)
    assert loss.total.item() == pytest.approx(reference.mean(reference.ce(logits, batch.y)), abs=1e-12)
    assert loss.logits is not None and torch.equal(loss.logits, logits)


@pytest.mark.parametrize(("norm", "size"), [(0.0, 14 / 255), (0.01, 8 / 255), (0.1, 4 / 255)])
def test_step_size_of_the_authors(norm: float, size: float) -> None:
    """√v = 0, c, and beyond the least step."""
    cfg = resolved("experiment=paper/atas", "model.blocks=[1,1,1,1]").method
    method = Atas(worlds.cnn(), worlds.attack(), cfg.scale, cfg.min_step, cfg.max_step, cfg.c, warmup=0.0)
    found = method._step_size(torch.tensor([norm**2], dtype=torch.float64))
    assert found.item() == pytest.approx(size, abs=1e-12)


def test_a_perturbation_survives_crop_and_flip() -> None:
    """The next epoch's view of an image shows what this epoch's left, in the margin of the canvas as well, and the
    canvas as it was where this epoch's view did not reach.
    """
    method, given = make()
    old, drawn = given.batch(0, 0), method.delta.clone()
    found = method.perturb(old)
    method.after_update(found)
    rows, both = old.index.tolist(), 0
    for step in range(given.steps):
        batch = given.batch(1, step)
        assert batch.view is not None
        seen = batch.view.apply_padded(method.delta[batch.index])
        for i, row in enumerate(batch.index.tolist()):
            if row in rows:
                j = rows.index(row)
                canvas, margin = drawn[row].clone(), torch.zeros(1, 12, 12, dtype=torch.bool)
                window(canvas, old, j).copy_(mirrored(found.x_adv[j] - old.x[j], old, j))
                window(margin, old, j).fill_(True)
                margin[:, PAD:-PAD, PAD:-PAD] = False
                assert torch.equal(seen[i], mirrored(window(canvas, batch, i), batch, i))
                both += int(window(margin, batch, i).sum())
    assert both > 30, "pixels of the margin that both views show"


def test_without_augmentation_the_canvas_is_the_image() -> None:
    method, given = make(worlds.data())
    assert method.delta.shape == (48, 1, 8, 8)
    batch = method.perturb(given.batch(0, 0))
    method.after_update(batch)
    assert torch.equal(method.delta[batch.index], batch.x_adv - batch.x)


def test_without_memory_it_is_one_step_of_the_attack() -> None:
    """Steps that are all ε and no δ: FGSM, bit for bit."""
    method, given = make(worlds.data(), min_step=EPS, max_step=EPS)
    method.delta.zero_()
    batch = given.batch(0, 0)
    plain = worlds.attack(eps=EPS, steps=1, step_size=EPS, start="zero")
    method.attack, mine = plain, method.perturb(batch).x_adv
    assert torch.equal(mine, super(Atas, method).perturb(batch).x_adv)


def test_rows_change_only_when_their_image_is_seen() -> None:
    method, given = make()
    delta, v = method.delta.clone(), method.v.clone()
    worlds.steps(method, given, 1, epochs=6)
    seen = torch.zeros(48, dtype=torch.bool)
    seen[given.batch(0, 0).index] = True
    assert torch.equal(method.delta[~seen], delta[~seen]) and torch.equal(method.v[~seen], v[~seen])
    assert (method.delta[seen] != delta[seen]).flatten(1).any(dim=1).all() and (method.v[seen] > 0).all()


def test_warm_up_and_new_starts_come_at_the_authors_epochs() -> None:
    """30 epochs, counted from 0: v stays 0 in the first five; δ is drawn before the tenth and the twentieth alone, and
    v goes on.
    """
    given = worlds.data(batch_size=48, augment=PadCropFlip(1, False))
    method, _ = make(given, epochs=30, warmup=5 / 30, reset=10 / 30)
    warm, fresh = [], []
    for epoch in range(30):
        fresh.append(not (method.delta.abs() > EPS - 1e-9).any())  # a step of ε ends at the ball's surface
        worlds.steps(method, given, 1, epochs=30, first=epoch)
        warm.append(not method.v.any())
        assert (method.epoch_figures()["step_mean"] == pytest.approx(EPS)) == warm[-1]
    assert fresh == [epoch in (0, 9, 19) for epoch in range(30)] and warm == [epoch < 5 for epoch in range(30)]


def test_starts_are_uniform_and_the_seeds() -> None:
    method, other = make()[0], make(worlds.data(seed=1, augment=PadCropFlip(PAD, True)))[0]
    first = method.delta.clone()
    assert first.abs().max() <= EPS and (first / EPS).square().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert torch.equal(make()[0].delta, first) and not torch.equal(other.delta, first)
    method._draw(0, 4)
    assert not torch.equal(method.delta, first)


@pytest.mark.parametrize("first", [3, 7, 9])
def test_resume_is_exact_across_new_starts(first: int) -> None:
    """Four epochs of four steps; δ is drawn anew before the second and the third."""
    straight, given = make(epochs=4, reset=0.25, warmup=0.25)
    worlds.steps(straight, given, 14)
    before, _ = make(epochs=4, reset=0.25, warmup=0.25)
    worlds.steps(before, given, first)
    after, _ = make(epochs=4, reset=0.25, warmup=0.25)
    after.load_state_dict(worlds.snapshot(before))
    worlds.steps(after, given, 14 - first, first=first)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(after))


def test_ranks_agree_and_only_after_update_writes() -> None:
    worlds.check_ranks(lambda given: make(given)[0], augment=PadCropFlip(PAD, True))
    method, given = make()
    worlds.check_pure(method, given.batch(0, 0))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_and_images_are_legal_in_every_norm(norm: str) -> None:
    """A canvas that several views wrote on may be outside of the L2 ball; the start is not."""
    method, given = make(norm=norm)
    seen: list[Tensor] = []
    method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for position in range(2 * given.steps):
        x = given.batch(*divmod(position, given.steps)).x
        worlds.steps(method, given, 1, epochs=6, first=position)
        for point in seen:
            assert worlds.legal(method.attack, x, point, EPS)
        seen.clear()


def test_what_cannot_be_put_back_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.augment: EdgePad .* put back"):
        make(worlds.data(augment=EdgePad(0.2)))
    with pytest.raises(ConfigError, match=r"method\.min_step: 0\.3 .* method\.max_step=0\.175"):
        make(min_step=0.3)


def test_it_is_a_single_step_method() -> None:
    """It is watched for collapse, and another number of steps is refused."""
    assert make()[0].single_step()
    validate.validate_config(resolved("method=atas"))
    with pytest.raises(ConfigError, match=r"attack\.steps"):
        validate.validate_config(resolved("method=atas", "attack.steps=2"))


def test_tables_cover_the_labelled_images_of_a_pool() -> None:
    method, given = make(worlds.data(labelled=0.5, extra=0.5, augment=PadCropFlip(PAD, True)))
    assert len(method.delta) == len(method.v) == len(given.train) == 24
    worlds.steps(method, given, 4, epochs=6)
