"""The papers' experiments against what their authors ran: one file of facts, `tests/paper/<name>.yaml`, an experiment.

A file of facts has its source as comments, read in the authors' repository (or paper), and these fields; fractions such
as 8/255 are understood:

    parameters: 46160474          trainable parameters of the network (and of what else is trained), at full size
    steps: 80000                  optimizer steps of the whole training, where its source counts steps and not epochs
                                  (null: there is no last one); the rates are at steps then
    rates: {0: 0.1, 37.5: ...}    learning rate of the group `model` at epochs from 0 (fractions are within an epoch),
                                  four points at least; `rates_of: {generator: {...}}` for further groups
    equal: {attack.eps: 0.031, train.batch_size: 128, ...}    any key of the resolved configuration
    small: [model.depth=10, model.width=1]                    words that make the network small enough for a test
    loss: [1.5, 4.0]              bounds of the first loss of that small network at initialisation, and why as a comment
    begin: true                   only where stage 0 is trained first: its networks are handed over untrained
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from atbench.config import validate, values
from atbench.config.instantiate import build
from atbench.data import Images, Source
from atbench.training import Trainer, World
from atbench.workflows import factory
from tests.support.configs import resolved
from tests.support.contract import Log, begin_untrained

FACTS = {path.stem: path for path in sorted((Path(__file__).parent / "paper").glob("*.yaml"))}
SHAPES = {
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "svhn": (3, 32, 32),
    "mnist": (1, 28, 28),
    "imagenet": (3, 64, 64),  # as ALP has it
}
HERE = World(torch.device("cpu"))
#: Images of the train splits as they are published, what is held out included.
IMAGES = {"cifar10": 50_000, "mnist": 60_000, "imagenet": 1_281_167}


@dataclass
class Paper:
    """One experiment, what its authors ran, and the words that make its network small."""

    name: str
    facts: dict[str, Any]

    def configuration(self, *words: str) -> DictConfig:
        return resolved(f"experiment=paper/{self.name}", "logger=none", *words)

    def small(self) -> DictConfig:
        """On 64 images, 32 to a batch: two optimizer steps an epoch."""
        words = ["train.batch_size=32", "train.epochs=1", "train.selection.n=4", "train.selection.steps=1"]
        return self.configuration(*words, *self.facts.get("small", []))


@pytest.fixture(params=sorted(FACTS))
def paper(request: pytest.FixtureRequest) -> Paper:
    return Paper(request.param, values.plain(values.resolve(OmegaConf.load(FACTS[request.param]))))


def pictures(cfg: DictConfig, n: int = 68) -> Source:
    """Random images in the data set's shape, four of them held out, as many of each class as of any other."""
    many = 1000 if cfg.dataset.about.name == "imagenet" else 100
    classes = cfg.dataset.source.get("classes") or [str(k) for k in range(many)]
    rng = torch.Generator().manual_seed(0)
    channels, *sides = SHAPES[cfg.dataset.about.name]
    shape = (channels, *(side + 2 * cfg.dataset.source.get("pad", 0) for side in sides))
    y = torch.arange(max(n, len(classes))) % len(classes)
    images = Images(torch.randint(256, (len(y), *shape), generator=rng, dtype=torch.uint8), y)
    source = cfg.dataset.source
    return Source("random", images, lambda: images, tuple(classes), tuple(source.mean), tuple(source.std), 4)


def made(cfg: DictConfig, source: Source, log: Log, begin: bool = False) -> Trainer:
    data = factory.make_data(cfg, source, HERE)
    method = factory.make_method(cfg, factory.make_model(cfg, source), data, HERE)
    if begin:
        begin_untrained(method, cfg, source)
    return factory.make_trainer(cfg, method, data, HERE, log, lambda: 0)


@pytest.mark.every_method("paper")
def test_the_settings_are_the_authors(paper: Paper) -> None:
    cfg = paper.configuration()
    validate.validate_config(cfg)
    for key, wanted in paper.facts["equal"].items():
        found = OmegaConf.select(cfg, key, throw_on_missing=True)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == (pytest.approx(wanted, rel=1e-9) if isinstance(wanted, float) else wanted), key


def steps_an_epoch(cfg: DictConfig) -> int:
    """Optimizer steps of one epoch at full size: whole batches of what is not held out, each used `replays` times."""
    left = IMAGES[cfg.dataset.about.name] - int(cfg.dataset.source.validation)
    return left // int(cfg.train.batch_size) * int(cfg.method.get("replays", 1))


STEPS = {name: facts["steps"] for name, path in FACTS.items() if (facts := OmegaConf.load(path)).get("steps")}


@pytest.mark.parametrize(("name", "steps"), [*STEPS.items(), ("kurakin_mixed_batch", 150_000)])
@pytest.mark.every_method("name")
def test_it_takes_the_authors_steps_to_the_nearest_epoch(name: str, steps: int) -> None:
    cfg = resolved(f"experiment=paper/{name}", "logger=none")
    an_epoch = steps_an_epoch(cfg)
    assert abs(cfg.train.epochs * an_epoch - steps) <= an_epoch / 2


@pytest.mark.every_method("paper")
def test_the_rates_are_the_authors(paper: Paper) -> None:
    cfg = paper.configuration()
    for group, rates in {"model": paper.facts["rates"], **paper.facts.get("rates_of", {})}.items():
        assert len(rates) >= 4, "four points of the schedule"
        node = {**cfg.train, **cfg.train.groups.get(group, {})}
        schedule = build(node["schedule"], "train.schedule")
        an_epoch = steps_an_epoch(cfg) if "steps" in paper.facts else 1
        for at, rate in rates.items():
            now = float(node["optimizer"]["lr"]) * schedule(at / (cfg.train.epochs * an_epoch))
            assert now == pytest.approx(rate, rel=1e-6, abs=1e-12), (group, at)


@pytest.mark.every_method("paper")
def test_the_network_has_the_authors_parameters(paper: Paper) -> None:
    cfg = paper.configuration()
    network = factory.make_model(cfg, pictures(cfg))
    assert sum(parameter.numel() for parameter in network.parameters()) == paper.facts["parameters"]


@pytest.mark.every_method("paper")
def test_it_takes_two_steps(paper: Paper) -> None:
    """Two optimizer steps on 64 images: weights move, and the first loss lies where its formula puts it."""
    cfg, log = paper.small(), Log()
    source = pictures(cfg)
    extra = len(source.train) - 64 - source.validation
    assert extra >= 0
    if cfg.train.extra_data.path is None:
        source = changed(source, train=source.train, validation=source.validation + extra)
    trainer = made(cfg, source, log, bool(paper.facts.get("begin")))
    losses: list[float] = []
    inner = trainer.method.loss

    def noted(batch: Any) -> Any:
        found = inner(batch)
        losses.append(float(found.total.detach()))
        return found

    trainer.method.loss = noted  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in trainer.method.model.named_parameters()}
    trainer.fit()
    assert trainer.method.clock.epoch == 1 and trainer.data.steps == 2
    assert any(not torch.equal(before[name], value) for name, value in trainer.method.model.named_parameters())
    low, high = paper.facts["loss"]
    assert low <= losses[0] <= high and all(torch.tensor(losses).isfinite())
