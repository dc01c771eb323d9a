"""`atbench bench eval`: our attacks beside those of other tools on one network, and beside the least they can cost.

The network of `sweep` and `restarts` is PreActResNet-18 on 16x16 pictures (`pictures.py`), trained with 24 batches of
FGSM-RS at 8/255; both run on images that survive, so that every tool does all its work and the least is known: one pass
forward and one back a step, and one forward for the last point. On a CPU two restarts stand for the ten: each is a
search of all the images again. `autoattack` runs on a small CNN, trained alike with 36 batches, so that some images
break. Other tools get their network with its parameters unfrozen, as it is after loading.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from atbench.bench import peers
from atbench.bench.peers import Run
from atbench.bench.pictures import pictures
from atbench.bench.results import Row
from atbench.bench.session import Session
from atbench.bench.steps import configuration, forward_operations, make_trainer
from atbench.evaluation.attack_runner import legal
from atbench.training.cost import Count

EPS = 8 / 255
SIZE = EPS / 4
SWEEP = (1, 2, 5, 10, 20, 50, 100)
STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")


@dataclass(frozen=True)
class Target:
    """A trained network and images that it has right. `loaded` is the copy that other tools get."""

    network: nn.Module
    loaded: nn.Module
    x: Tensor
    y: Tensor

    def held(self, x_adv: Tensor) -> Tensor:
        """Positions of the images that are right at `x_adv`."""
        with torch.no_grad():
            return (self.network(x_adv).argmax(dim=1) == self.y).nonzero().flatten()

    def take(self, rows: Tensor | slice) -> Target:
        return Target(self.network, self.loaded, self.x[rows], self.y[rows])

    def work(self, attack: Run) -> Callable[[], object]:
        """The attack on all the images."""
        return partial(attack, self.x, self.y, torch.arange(len(self.y)))


def trained(device: torch.device, model: str, side: int, batches: int, images: int, *words: str) -> Target:
    """A network after `batches` batches of FGSM-RS, and the first `images` test pictures that it has right."""
    source = pictures((3, side, side), 512)
    fixed = (
        "dataset=cifar10",
        "method=fast_at",
        "train.batch_size=32",
        "train.optimizer.lr=0.05",
        "guard.collapse=null",
    )
    trainer = make_trainer(configuration(*fixed, f"model={model}", *words), source, device)
    clock = trainer.method.clock
    for number in range(batches):
        clock.epoch, clock.step = divmod(number, trainer.data.steps)
        trainer.train_batch()
    network = trainer.method.model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    test = source.test().to(device)
    whole = Target(network, copy.deepcopy(network).requires_grad_(True), test.floats(), test.y)
    return whole.take(whole.held(whole.x)[:images])


@cache
def preact(device: torch.device, tiny: bool) -> Target:
    """The network of `sweep` and `restarts`, and images that survive PGD-20 in a ball a quarter larger than theirs."""
    count = 16 if device.type == "cpu" else 512
    target = (
        trained(device, "cnn", 8, 60, 16, "model.width=4") if tiny else trained(device, "preactresnet18", 16, 24, count)
    )
    search = peers.sweep(target.network, 1.25 * EPS, 20, 1.25 * SIZE)
    return target.take(target.held(search(target.x, target.y, torch.arange(len(target.y)))))


def measure(session: Session, parts: tuple[str, ...]) -> Iterator[Row]:
    for part in parts:
        yield from PARTS[part](session)


def at_floor(target: Target, attack: Run) -> tuple[Target, float]:
    """The images that survive an attack, and its operations upon them in forward passes an image."""
    with Count() as count:
        x_adv = attack(target.x, target.y, torch.arange(len(target.y)))
    held = target.held(x_adv)
    if 0 < len(held) < len(target.y):
        return at_floor(target.take(held), attack)
    return target, count.total / (forward_operations(target.network, tuple(target.x.shape[1:])) * len(target.y))


def sweep(session: Session) -> Iterator[Row]:
    """PGD-k for seven k on one trajectory, beside torchattacks' PGD for each of them."""
    steps = SWEEP[:3] if session.tiny else SWEEP
    target = preact(session.device, session.tiny).take(slice(8 if session.device.type == "cpu" else 256))
    ours = peers.sweep(target.network, EPS, steps[-1], SIZE)
    target, passes = at_floor(target, ours)
    what = f"PGD-k, k in {{{', '.join(map(str, steps))}}}, {len(target.y)} images that survive"
    yield session.row("sweep/floor", f"{what}: operations over the least", [passes / (2 * steps[-1] + 1)])
    tools = {"atbench": target.work(ours)}
    for tool in session.present("torchattacks"):
        each = [peers.torchattacks(target.loaded, "PGD", eps=EPS, alpha=SIZE, steps=k) for k in steps]
        tools[tool] = target.work(peers.one_by_one(each))
    yield from timed(session, "sweep", what, tools, len(target.y))


def restarts(session: Session) -> Iterator[Row]:
    """PGD-50 with ten restarts (two on a CPU), beside torchattacks in a plain loop and foolbox."""
    cpu = session.device.type == "cpu"
    steps, many = (3 if session.tiny else 50), (2 if cpu else 10)
    target = preact(session.device, session.tiny).take(slice(4 if cpu else 256))
    ours = peers.ours(target.network, "pgd_ce", EPS, steps=steps, restarts=many)
    target, passes = at_floor(target, ours)
    what = f"PGD-{steps}, {many} restarts, {len(target.y)} images that survive"
    least = many * (2 * steps + 1)
    yield session.row("restarts/floor", f"{what}: operations over the least", [passes / least])
    tools = {"atbench": target.work(ours)}
    present = session.present("torchattacks", "foolbox")
    if "torchattacks" in present:
        once = peers.torchattacks(target.loaded, "PGD", eps=EPS, alpha=SIZE, steps=steps)
        tools["torchattacks"] = target.work(peers.repeated(once, target.loaded, many))
    if "foolbox" in present:
        options = {"abs_stepsize": SIZE, "steps": steps, "random_start": True}
        tools["foolbox"] = target.work(peers.foolbox(target.loaded, "LinfPGD", EPS, many, **options))
    yield from timed(session, "restarts", what, tools, len(target.y))


def autoattack(session: Session) -> Iterator[Row]:
    """AutoAttack standard beside the official one: each attack on what those before left right; and their verdicts."""
    side, width, images = (8, 4, 4) if session.tiny else (16, 16, 24)
    target = trained(session.device, "cnn", side, 36, images, f"model.width={width}")
    names = STANDARD[:1] if session.tiny else STANDARD
    verdicts: dict[str, Tensor] = {}
    tools = {"atbench": [peers.ours(target.network, name, EPS) for name in names]}
    for tool in session.present("pyautoattack"):
        tools[tool] = [peers.autoattack(target.loaded, name.replace("_", "-"), EPS) for name in names]

    def run(tool: str) -> None:
        verdicts[tool] = robust(target, tools[tool])

    seconds = session.seconds({tool: partial(run, tool) for tool in tools}, warmup=0)
    left = int(verdicts["atbench"].sum())
    what = f"AutoAttack standard, {len(target.y)} images of which {left} survive"
    yield session.row(
        "autoattack/images", f"{what}: images", [len(target.y) / each for each in seconds["atbench"]], "/s"
    )
    yield from session.beside("autoattack", what, seconds, "atbench")
    if "pyautoattack" in verdicts:
        same = float((verdicts["atbench"] == verdicts["pyautoattack"]).float().mean())
        yield session.row("autoattack/agreement", f"{what}: share with the same verdict", [same], "")


def robust(target: Target, attacks: list[Run]) -> Tensor:
    """(n,) booleans: which images are right after all the attacks, each on what those before left right."""
    alive = torch.arange(len(target.y), device=target.y.device)
    for attack in attacks:
        if len(alive):
            x, y = target.x[alive], target.y[alive]
            x_adv = attack(x.clone(), y.clone(), alive.cpu()).detach()
            with torch.no_grad():
                broken = (target.network(x_adv).argmax(dim=1) != y) & legal(x, x_adv, "linf", EPS)
            alive = alive[~broken]
    held = torch.zeros(len(target.y), dtype=torch.bool)
    held[alive.cpu()] = True
    return held


def timed(session: Session, name: str, what: str, tools: dict[str, Callable[[], object]], images: int) -> Iterator[Row]:
    """Images a second of ours, and how much longer the others take."""
    seconds = session.seconds(tools, warmup=int(session.device.type == "cuda"))  # counting has warmed up the kernels
    yield session.row(f"{name}/images", f"{what}: images", [images / each for each in seconds["atbench"]], "/s")
    yield from session.beside(name, what, seconds, "atbench")


PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {"sweep": sweep, "restarts": restarts, "autoattack": autoattack}
