"""`atbench bench train`: operations of a step, our steps beside those of other tools, the trainer's own overhead.

Every tool trains its own copy of one network on one batch of one process, in turns. Other tools compute in fp32, as
their users do (TF32 beside our bf16 on CUDA); they get the parameters unfrozen and fix nothing of ours. A ratio is
theirs over ours, round by round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from atbench.bench.clock import Work
from atbench.bench.machine import peak, peak_of
from atbench.bench.pictures import pictures
from atbench.bench.results import Row
from atbench.bench.session import Session
from atbench.bench.steps import OurStep, configuration, forward_operations, make_trainer, operations, their_steps
from atbench.models.cuda_settings import cuda_settings

FLOOR = ("pgd_at", "trades", "mart", "fast_at", "fgsm_mep", "free_at")
LAST = "train.channels_last=true"
PEERS = ("torchattacks", "foolbox", "ART", "MAIR")


@dataclass(frozen=True)
class Contest:
    """A method, a network and sizes at which steps are compared."""

    method: str
    model: str
    batch: int
    steps: int
    shape: tuple[int, int, int]
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method}/{self.model}-b{self.batch}-k{self.steps}"

    def words_of(self, number: str, *words: str) -> list[str]:
        """The words of `atbench train`, computed in `number`, fp32 or bf16."""
        dataset = "mnist" if self.shape[0] == 1 else "cifar10"
        return [
            *(f"dataset={dataset}", f"model={self.model}", f"method={self.method}", f"train.batch_size={self.batch}"),
            *(f"attack.steps={self.steps}", f"train.precision.attack={number}", f"train.precision.update={number}"),
            *(*self.words, *words),
        ]


def contests(session: Session) -> list[Contest]:
    """What is compared on this device."""
    small, large = (1, 28, 28), (3, 32, 32)
    if session.tiny:
        return [Contest("pgd_at", "cnn", 4, 1, (1, 8, 8), ("model.width=2",))]
    found = [Contest(method, "cnn", 128, 10, small) for method in ("pgd_at", "trades")]
    sizes = ((128, 10), (512, 10)) if session.device.type == "cuda" else ((8, 3),)
    return found + [
        Contest(method, "preactresnet18", batch, steps, large)
        for batch, steps in sizes
        for method in ("pgd_at", "trades")
    ]


def measure(session: Session, parts: tuple[str, ...]) -> Iterator[Row]:
    """The peak of the machine, then the parts; with methods of `--methods`, those instead of the parts."""
    peaks = peak(session)
    yield from peaks
    if session.methods:
        yield from methods(session, peaks)
        return
    for part in parts:
        yield from PARTS[part](session, peaks)


def floor(session: Session, peaks: list[Row]) -> Iterator[Row]:
    """Operations of one step, counted on the CPU, over the least that the method declares."""
    device, steps = torch.device("cpu"), 2 if session.tiny else 10
    batch = 4 if session.tiny else 32
    for name in FLOOR[:1] if session.tiny else FLOOR:
        cfg = configuration(
            *("dataset=digits", "model=cnn", "model.width=16", "model.norm=none", f"method={name}", "train.epochs=2"),
            *((f"attack.steps={steps}",) if name in ("pgd_at", "trades", "mart") else ()),
            *(f"train.batch_size={batch}", "train.channels_last=false"),
        )
        trainer = make_trainer(cfg, pictures((1, 8, 8), 10 + 2 * batch), device)
        method, least = trainer.method, trainer.method.forward_cost(int(cfg.attack.steps))
        method.clock.epoch, method.clock.step = 1, 1  # past what a training and an epoch begin with
        forward = forward_operations(method.model, (1, 8, 8)) * batch
        passes = operations(method, trainer.data.batch(1, 1)) / forward
        assert least is not None, name
        what = f"{name}: {passes:.2f} forward passes, declared {least:g}"
        yield session.row(f"floor/{name}", what, [passes / least])


def steps(session: Session, peaks: list[Row]) -> Iterator[Row]:
    """Our steps, in fp32 and in bf16 with channels_last, beside those of the tools that are installed."""
    for contest in contests(session):
        yield from compare(session, contest, peaks)


def compare(session: Session, contest: Contest, peaks: list[Row]) -> Iterator[Row]:
    """All tools in one process, in turns; on CUDA a second time in TF32, the loop that a user of bf16 has otherwise."""
    source, cuda = pictures(contest.shape, contest.batch + 10), session.device.type == "cuda"
    layout = "train.channels_last=auto"
    cfg, half = (configuration(*contest.words_of(*each)) for each in (("fp32", layout), ("bf16", LAST)))
    plain, reduced = (OurStep(each, source, session.device) for each in (cfg, half))
    network = copy.deepcopy(plain.trainer.method.model).to(memory_format=torch.contiguous_format)
    others = their_steps(
        network, contest.method, cfg.attack, plain.batch.x.contiguous(), plain.batch.y, session.present(*PEERS)
    )
    tools: dict[str, Work] = {"atbench": plain, "atbench bf16": reduced, **others}
    with cuda_settings("ieee"):
        seconds = session.seconds(tools)
    eager = seconds
    if cuda:
        with cuda_settings("tf32"):
            eager = session.seconds({tool: step for tool, step in tools.items() if tool != "atbench"})
    name, what = contest.name, contest.name.replace("/", " ")
    yield from session.beside(f"{name}/fp32", f"{what}, fp32", seconds, "atbench")
    rivals = {tool: times for tool, times in eager.items() if tool in ("atbench bf16", "torchattacks")}
    yield from session.beside(f"{name}/bf16", f"{what}, our bf16 + channels_last", rivals, "atbench bf16")
    yield from absolute(session, f"{name}/fp32", f"{what}, fp32", plain, seconds["atbench"], peaks)
    yield from absolute(session, f"{name}/bf16", f"{what}, bf16", reduced, eager["atbench bf16"], peaks)


def absolute(
    session: Session, name: str, what: str, ours: OurStep, seconds: list[float], peaks: list[Row]
) -> Iterator[Row]:
    """Images a second, the attack's share, the share of the machine's peak, and memory."""
    method, batch = ours.trainer.method, len(ours.batch.y)
    yield session.row(f"{name}/images", f"{what}: images", [batch / each for each in seconds], "/s")
    share = [ours.attack_share() for _ in range(2)]
    yield session.row(f"{name}/attack_share", f"{what}: share of the attack", share, "")
    passes = method.forward_cost(method.attack.steps)
    if passes is not None:
        work = passes * batch * forward_operations(method.model, tuple(ours.batch.x.shape[1:]))
        best = peak_of(peaks, "bf16" if name.endswith("bf16") else "fp32")
        yield session.row(
            f"{name}/peak_share", f"{what}: share of the peak", [work / each / best for each in seconds], ""
        )
    used = session.clock.peak_bytes(ours)
    if used is not None:
        yield session.row(f"{name}/memory", f"{what}: peak memory", [used / 2**30], "GiB")


def overhead(session: Session, peaks: list[Row]) -> Iterator[Row]:
    """The trainer's `train_batch`, data and records included, over attack, loss and update on one batch."""
    many = 1 if session.tiny else 5
    words = ["dataset=digits", "model=cnn", "method=trades", "train.batch_size=32", "train.channels_last=false"]
    words += ["model.width=2", "attack.steps=1"] if session.tiny else []
    source = pictures((1, 8, 8), 330)
    trained, bare = (OurStep(configuration(*words), source, session.device) for _ in range(2))
    trainer = trained.trainer

    def train() -> None:
        for _ in range(many):
            trainer.train_batch()
            trainer.method.clock.step = (trainer.method.clock.step + 1) % trainer.data.steps
        trainer.means.clear()

    def alone() -> None:
        for _ in range(many):
            bare.bare()

    rounds = session.rounds
    session.rounds = rounds * (1 if session.tiny else 5)  # short turns
    seconds = session.seconds({"trainer": train, "bare": alone})
    session.rounds = rounds
    ratio = [a / b for a, b in zip(seconds["trainer"], seconds["bare"], strict=True)]
    yield session.row("overhead", "trainer over attack, loss and update alone (TRADES, 8x8, batch 32)", ratio)


def methods(session: Session, peaks: list[Row]) -> Iterator[Row]:
    """Images a second and memory of the methods of `--methods`, on CUDA in bf16."""
    cuda = session.device.type == "cuda"
    for name in session.methods:
        contest = (
            Contest(name, "preactresnet18", 128, 10, (3, 32, 32))
            if cuda
            else Contest(name, "cnn", 128, 10, (1, 28, 28))
        )
        if session.tiny:
            contest = Contest(name, "cnn", 4, 1, (1, 8, 8), ("model.width=2",))
        number = "bf16" if cuda else "fp32"
        step = OurStep(
            configuration(*contest.words_of(number)), pictures(contest.shape, contest.batch + 10), session.device
        )
        seconds = session.seconds({"atbench": step})["atbench"]
        what = f"{contest.name.replace('/', ' ')}, {number}"
        yield from absolute(session, f"methods/{contest.name}/{number}", what, step, seconds, peaks)


PARTS: dict[str, Callable[[Session, list[Row]], Iterator[Row]]] = {"floor": floor, "steps": steps, "overhead": overhead}
