"""Every method does what its YAML declares (`effect`), seen after a short training on digits, stage 0 included.

Schedules are shares of training, so a short run enters every mechanism. The bars lie far below what longer runs reach
(docs/methods.md) and far above what a network has that no adversary trained.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from atbench.attacks import Objective, confidence, cross_entropy
from atbench.config import values
from atbench.config.registry import conf_dir, entries
from atbench.data.digits import digits
from atbench.models import Ensemble
from atbench.runs.run_dir import write_text
from atbench.runs.signals import flag_signals
from atbench.training import Trainer
from atbench.workflows.train import Run
from tests.support.configs import resolved
from tests.support.contract import ALONE

pytestmark = pytest.mark.slow

SHORT = (
    "model.width=12",
    "train.batch_size=64",
    "train.epochs=6",
    "train.selection.every=6",
    "train.selection.n=100",
    "threads=1",
)
NORMS = ("linf", "l2", "l1")
#: What needs more to get going, and what shows with less, and why.
OWN = {
    "cat_curriculum": ("train.epochs=15", "train.selection.every=1"),  # validation decides when the attack grows
    "kurakin_mixed_batch": ("train.batch_size=32", "train.epochs=24"),  # half of a batch, at a third of the radius
    "llr": ("train.batch_size=32", "train.epochs=8", "attack.steps=5"),  # no adversarial image is in the loss
    "rlfat": ("train.batch_size=32", "train.epochs=10", "attack.steps=5"),  # shuffled digits are hard to tell apart
    "rlfat_trades": ("train.batch_size=32", "train.epochs=10", "attack.steps=5"),
    "adr": ("method.decay=0.9",),  # 0.995 still holds half of the initial weights after 120 updates
    **dict.fromkeys(("adp", "gal", "trs"), ("model.members=2",)),
    "dverge": ("model.members=2", "method.distill_steps=5"),
    "cat_customized": ("method.eta=0.04",),  # else 14 visits to the largest radius
    "eat": ("train.batch_size=32", "train.epochs=10"),  # of four images one is its own
    **dict.fromkeys(("ard", "rslad"), ("train.batch_size=32", "train.epochs=10")),  # a tenth of a KL is little
    "ccat": ("attack.steps=15",),
    "ssdrl": ("method.classes=2",),  # a fifth of the searches
    **dict.fromkeys(
        ("msd", "multi_norm_avg", "multi_norm_max"), ("attack.steps=5",)
    ),  # steps as long as they have to be
}
METHODS = [(entry["name"], entry["effect"]) for entry in entries("methods", [conf_dir()])]
CHANCE = 0.1


def with_adv(effect: str) -> list[str]:
    return [name for name, declared in METHODS if declared == effect]


@cache
def trained(name: str, *overrides: str) -> Trainer:
    """A method after a short training of everything that it trains."""
    words = [f"method={name}", *SHORT, *OWN.get(name, ()), *overrides]
    cfg = resolved(*words)
    with TemporaryDirectory() as folder, flag_signals() as signal:
        run = Run(cfg, digits(), ALONE, signal, Path(folder), label=name)
        write_text(run.folder / "status.json", "{}")
        trainer = run.build_trainer(fresh=True)
        run.fit(trainer, None)
    return trainer


def accuracy(trainer: Trainer, norm: str, steps: int = 10) -> float:
    """Of what is evaluated (the average, if there is one) on the held-out part, under PGD at the data set's radius."""
    radius = values.plain(resolved()).get("dataset")["threat"][norm]
    with trainer.evaluated() as network:
        return trainer.validation.accuracy(network, norm=norm, **radius, steps=steps)


@pytest.mark.parametrize("name", with_adv("clean"))
def test_clean_training_is_right_and_not_robust(name: str) -> None:
    trainer = trained(name)
    assert accuracy(trainer, "linf", steps=0) > 0.9 and accuracy(trainer, "linf") < 0.3


@pytest.mark.parametrize(
    ("name", "more"), [*((name, 0.15) for name in with_adv("robust")), *((name, 0.05) for name in with_adv("faint"))]
)
def test_robust_training_withstands_pgd(name: str, more: float) -> None:
    """In the norm that was trained for: above chance, where the start stands, and above training on clean images."""
    trainer = trained(name)
    norm = trainer.method.attack.norm
    assert accuracy(trainer, norm) > max(accuracy(trained("standard"), norm), CHANCE) + more


@pytest.mark.parametrize("name", with_adv("transfer"))
def test_what_fools_one_member_fools_the_others_less(name: str) -> None:
    """Accuracy of a member on PGD images of another is above that of members trained on clean images."""
    ours, plain = transfer(trained(name)), transfer(trained("standard", "model.members=2"))
    assert ours > plain + 0.1


@pytest.mark.parametrize("name", with_adv("union"))
def test_training_for_several_norms_withstands_all_of_them(name: str) -> None:
    """The worst norm's accuracy is above that of training on clean images, and it is no constant network."""
    ours, plain = (min(accuracy(trained(which), norm) for norm in NORMS) for which in (name, "standard"))
    assert ours > plain + 0.05 and accuracy(trained(name), "linf", steps=0) > 0.5


@pytest.mark.parametrize("name", with_adv("rejection"))
def test_what_is_adversarial_is_rejected(name: str) -> None:
    """At a threshold that accepts 95 % of the right predictions fewer of the surest wrong answers are accepted than of
    a network trained on clean images.
    """
    assert fooled(trained(name), trained(name)) < fooled(trained("standard"), trained(name)) - 0.2


def fooled(trainer: Trainer, attacker: Trainer) -> float:
    """Share of held-out images with an accepted wrong answer near them, by the search that `attacker` trains with."""
    held, search = trainer.validation.held, attacker.method.attack
    x = held.floats(torch.arange(len(held)), torch.float32)
    with trainer.evaluated() as network:
        network.eval()
        clean = network(x).softmax(dim=1)
        threshold = clean.amax(dim=1)[clean.argmax(dim=1) == held.y].quantile(0.05)
        x_adv = search(Objective(network, confidence, held.y), x, start=x)
        found = network(x_adv).softmax(dim=1)
    return float(((found.argmax(dim=1) != held.y) & (found.amax(dim=1) >= threshold)).float().mean())


def transfer(trainer: Trainer) -> float:
    """Mean accuracy of the members of an ensemble on what PGD finds for their neighbour."""
    model, held = trainer.method.model.eval(), trainer.validation.held
    assert isinstance(model, Ensemble)
    x, right = held.floats(torch.arange(len(held)), torch.float32), []
    search = trainer.method.attack
    for i, member in enumerate(model.members):
        x_adv = search(Objective(model.members[i - 1], cross_entropy, held.y), x, rng=trainer.method.rng("transfer"))
        right.append((member(x_adv).argmax(dim=1) == held.y).float().mean().item())
    return sum(right) / len(right)
