"""CutMix and MixUp: pixels and labels in the same shares, the same mixture on any number of processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.config.registry import conf_dir, options
from atbench.data import Chain, CutMix, Cutout, Mix, MixUp, PadCropFlip, Shard
from atbench.errors import ConfigError
from atbench.methods import Method
from atbench.runs.seeding import Draws, generator
from atbench.training import World
from atbench.workflows import factory
from tests.support.batches import equal
from tests.support.configs import resolved
from tests.support.contract import configuration
from tests.support.worlds import attack, cnn, data, linear, source, start

MIXES = [CutMix, MixUp]


def mixed(mix: Mix, place: int, side: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor]:
    """What becomes of black images of class 0 and white partners of class 1: each pixel is the partner's share."""
    x = torch.zeros(3, 2, *side, dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    return mix(x, y, x + 1, 1 - y, Draws(generator("cpu", 0, "mix", place)))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("kind", MIXES)
def test_labels_are_shared_as_pixels_are(kind: type[Mix], alpha: float) -> None:
    for place in range(100):
        x, y = mixed(kind(alpha), place)
        assert torch.allclose(y.sum(dim=1), torch.ones(3, dtype=torch.float64))
        assert y[0, 1].item() == pytest.approx(x[0, 0].mean().item(), abs=1e-12)
        assert torch.equal(x[0, 0], x[2, 1]), "one mixture a batch"


def test_the_share_is_drawn_from_beta() -> None:
    for alpha in (0.2, 1.0, 5.0):
        share = torch.tensor([mixed(MixUp(alpha), place)[1][0, 0] for place in range(2000)])
        assert share.mean().item() == pytest.approx(0.5, abs=0.03)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_box_is_one_rectangle_of_the_drawn_area() -> None:
    areas = []
    for place in range(400):
        box = mixed(CutMix(1.0), place, (20, 20))[0][0, 0].bool()
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None, :])
        for line in (box.any(0), box.any(1)):
            assert (line.int().diff() != 0).sum() <= 2
        areas.append(box.double().mean())
    assert 0.25 < torch.stack(areas).mean() < 0.45  # 1/2 but for what lies outside the image


def test_a_batch_is_mixed_with_partners_of_its_own_epoch() -> None:
    plain, given = data(batch_size=48), data(batch_size=48, mix=MixUp(1.0))
    before, after = plain.batch(0, 0), given.batch(0, 0)
    assert torch.equal(before.index, after.index) and after.y.shape == (48, 3)
    own = after.y.gather(1, before.y[:, None]).squeeze(1)
    share = own.min()
    assert 0 < share < 1 and ((own == share) | (own == 1)).all(), "partners of the same class leave the label whole"
    partners = (after.x - share * before.x) / (1 - share)
    assert {tuple(image.flatten().mul(255).round().tolist()) for image in partners} == {
        tuple(image.flatten().mul(255).round().tolist()) for image in before.x
    }


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_mix_what_one_would(kind: type[Mix], world: int) -> None:
    options = {"augment": Chain([PadCropFlip(1, True), Cutout(2)]), "mix": kind(1.0)}
    whole = data(**options)
    parts = [data(shard=Shard(rank, world), **options).batch(1, 2) for rank in range(world)]
    joint = whole.batch(1, 2)
    assert torch.equal(torch.cat([part.x for part in parts]), joint.x)
    assert torch.equal(torch.cat([part.y for part in parts]), joint.y)
    assert equal(data(**options).batch(1, 2), joint), "a resumed run mixes alike"


def test_pool_images_are_not_mixed() -> None:
    given, plain = data(labelled=0.5, extra=0.5, mix=CutMix(1.0)), data(labelled=0.5, extra=0.5)
    extra, before = given.batch(0, 0).extra, plain.batch(0, 0).extra
    assert extra is not None and before is not None and torch.equal(extra.x, before.x) and (extra.y == -1).all()


ONE_LABEL = {"mart", "mma", "fgsm_mep", "atas", "iaat", "rst", "dkl", "ccat", "tla", "pgd_at_te", "trades_te"} | {
    *("atda", "kim_interval", "bat", "szegedy", "fgsm_mep_cs", "fgsm_pco"),
    *("fgsm_cuap", "liet", "tdat", "adr", "arow", "cfa"),
    *("consistency_at", "dajat"),  # several views of one image
    *("adp", "fat", "fat_trades", "fat_mart", "dynamic_at"),
    *("pass", "ssdrl", "uat_ft", "uat_ot", "uat_pp"),
    "multi_norm_avg",
    "multi_norm_max",
    *("cat_customized", "gair_fat", "gairat", "mail_at", "mail_mart", "mail_trades"),
}


@pytest.mark.parametrize("name", options("method", [conf_dir()]))
@pytest.mark.every_method("name")
def test_every_method_takes_shares_or_says_that_it_does_not(name: str) -> None:
    cfg = configuration(name, "dataset.augment={_target_: atbench.data.mixup.CutMix, alpha: 1.0}")
    here = World(torch.device("cpu"))
    origin = source(n=60)
    given = factory.make_data(cfg, origin, here)
    try:
        method = factory.make_method(cfg, factory.make_model(cfg, origin), given, here)
    except ConfigError as refusal:
        assert name in ONE_LABEL and "CutMix" in str(refusal)
        return
    assert not method.requires_hard_labels
    start(method, given)
    for turn in method.inner_updates(given.batch(0, 0)):
        if turn.perturb:
            turn.batch = method.perturb(turn.batch)  # `inner_updates` reads it when it goes on
        loss = method(turn.batch)
        loss.total.backward()
        assert torch.isfinite(loss.total) and 0 <= float(loss.terms.get("accuracy", 0)) <= 1


def test_risk_of_shares_is_the_mean_risk_of_classes() -> None:
    method = Method(linear(), attack())
    logits, first, second = torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 1, 0, 2, 0])
    for smoothing in (0.0, 0.4):
        method.risk.label_smoothing = smoothing
        soft = 0.3 * torch.eye(3).double()[first] + 0.7 * torch.eye(3).double()[second]
        expected = 0.3 * method.risk(logits, first) + 0.7 * method.risk(logits, second)
        torch.testing.assert_close(method.risk(logits, soft), expected)


class TestConfiguration:
    def make(self, *words: str) -> tuple[object, Mix | None]:
        return factory.make_augment(resolved("dataset=cifar10", *words))

    def test_one_node_or_a_list(self) -> None:
        crop, cut, mix = (
            "{_target_: atbench.data.augment.PadCropFlip, pad: 4, flip: true}",
            "{_target_: atbench.data.augment.Cutout, length: 8}",
            "{_target_: atbench.data.mixup.CutMix, alpha: 1.0}",
        )
        augment, none = self.make()
        assert isinstance(augment, PadCropFlip) and none is None
        augment, mixer = self.make(f"dataset.augment=[{crop},{cut},{mix}]")
        assert isinstance(augment, Chain) and len(augment.steps) == 2 and isinstance(mixer, CutMix)
        assert self.make("train.augment=false") == (None, None) == self.make("dataset.augment=null")
        with pytest.raises(ConfigError, match=r"dataset\.augment: CutMix and CutMix"):
            self.make(f"dataset.augment=[{mix},{mix}]")

    def test_a_share_without_a_distribution(self) -> None:
        with pytest.raises(ConfigError, match="above 0"):
            MixUp(0.0)


def test_the_network_sees_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft labels reach the loss of the simplest method as they are."""
    from atbench.methods.standard import Standard

    given = data(mix=MixUp(1.0))
    batch = given.batch(0, 0)
    net = cnn()
    loss = Standard(net, attack()).loss(batch).total
    expected = -(batch.y * net(batch.x).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
