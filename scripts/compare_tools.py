"""Our attacks beside other tools on one network: accuracy, agreement example by example, and time in one run.

    python scripts/compare_tools.py RUN --data-dir data --n 1000 --out tables.md      the tables of docs/evaluation.md
    python scripts/compare_tools.py RUN --data-dir data --n 1000 --only autoattack

The other tools: pip install atbench[bench]. What is not installed is left out of the tables.

Tools take turns batch by batch, in an order that rotates, so that a busy machine slows all of them alike: a time is the
median of the batches' ratios, beside their range. Every tool attacks the images that the network has right; all are
judged here, by the prediction at what they return, if it lies in the ball. Times are the process's own CPU seconds. The
other tools get the network as a user has it after loading, parameters unfrozen: freezing them is their business.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from atbench.bench import peers as c
from atbench.data import Images
from atbench.evaluation.attack_runner import legal
from atbench.interval import accuracy_figures
from atbench.workflows import eval_plan, factory
from atbench.workflows.resume import resolve_target

BATCH = 200


@dataclass(frozen=True)
class Contest:
    """One line of a table: the same attack by several tools, the first of them ours.

    tools: the attacks of each, every one on what those before left right; most have one.
    """

    name: str
    tools: dict[str, list[c.Run]]


def contests(network: nn.Module, eps: float, shape: tuple[int, ...]) -> dict[str, list[Contest]]:
    """The tables, by name."""
    step, small = eps / 4, eps / 30
    loaded = copy.deepcopy(network).requires_grad_(True)
    fb, aa, ta, ar = (c.installed(name) for name in ("foolbox", "pyautoattack", "torchattacks", "ART"))

    def line(name: str, **tools: c.Run | list[c.Run] | None) -> Contest:
        return Contest(name, {k: run if isinstance(run, list) else [run] for k, run in tools.items() if run})

    def pgd(steps: int, start: str, restarts: int, size: float) -> c.Run:
        share = size / eps
        return c.ours(
            network,
            "pgd_ce",
            eps,
            steps=steps,
            rel_step_size=share,
            start=start,
            restarts=restarts,
            return_point="last",
        )

    def theirs(steps: int, random: bool, restarts: int, size: float) -> dict[str, c.Run | None]:
        many = {"abs_stepsize": size, "steps": steps, "random_start": random}
        return {
            "foolbox": c.foolbox(loaded, "LinfPGD", eps, repeat=restarts, **many) if fb else None,
            "torchattacks": c.torchattacks(loaded, "PGD", eps=eps, alpha=size, steps=steps, random_start=random)
            if ta and restarts == 1
            else c.repeated(c.torchattacks(loaded, "PGD", eps=eps, alpha=size, steps=steps), loaded, restarts)
            if ta
            else None,
            "ART": c.art(loaded, eps, size, steps, restarts if random else 0, shape) if ar else None,
        }

    standard = ("apgd_ce", "apgd_t", "fab_t", "square")
    official = [c.autoattack(loaded, name.replace("_", "-"), eps) for name in standard] if aa else None
    one = {name: c.autoattack(loaded, name.replace("_", "-"), eps) if aa else None for name in standard}
    return {
        "fixed": [
            line(
                "FGSM",
                atbench=pgd(1, "zero", 1, eps),
                foolbox=c.foolbox(loaded, "LinfFastGradientAttack", eps, random_start=False) if fb else None,
                torchattacks=c.torchattacks(loaded, "FGSM", eps=eps) if ta else None,
            ),
            line("PGD-40, from the image", atbench=pgd(40, "zero", 1, small), **theirs(40, False, 1, small)),
            line("PGD-40, random start", atbench=pgd(40, "uniform", 1, small), **theirs(40, True, 1, small)),
            line("PGD-50, 10 restarts", atbench=pgd(50, "uniform", 10, step), **theirs(50, True, 10, step)),
        ],
        "prefixes": [
            line(
                "PGD-1 … PGD-100, 7 values of k",
                atbench=c.sweep(network, eps, 100, step),
                torchattacks=c.one_by_one(
                    [c.torchattacks(loaded, "PGD", eps=eps, alpha=step, steps=k) for k in (1, 2, 5, 10, 20, 50, 100)]
                )
                if ta
                else None,
            )
        ],
        "apgd": [
            line("APGD-CE", atbench=c.ours(network, "apgd_ce", eps), pyautoattack=one["apgd_ce"]),
            line("APGD-T", atbench=c.ours(network, "apgd_t", eps), pyautoattack=one["apgd_t"]),
        ],
        "autoattack": [
            line(
                "AutoAttack standard",
                atbench=[c.ours(network, name, eps) for name in standard],
                pyautoattack=official,
            )
        ],
    }


def warm(network: nn.Module, x: Tensor) -> None:
    """A pass back and forth: the first at a new shape chooses its kernels, and no tool should pay that for all."""
    x = x.clone().requires_grad_()
    torch.autograd.grad(network(x).sum(), x)


class Score:
    """What one tool has come to in one contest."""

    def __init__(self, stages: int, n: int) -> None:
        self.robust = torch.ones(stages, n, dtype=torch.bool)
        self.seconds: list[float] = []
        self.parts = [0.0] * stages


def play(network: nn.Module, contest: Contest, x: Tensor, y: Tensor, eps: float) -> dict[str, Score]:
    """All tools on all batches of images that are classified right."""
    scores = {tool: Score(len(runs), len(x)) for tool, runs in contest.tools.items()}
    names = list(scores)
    warm(network, x[:BATCH])
    for turn, rows in enumerate(torch.arange(len(x)).split(BATCH)):
        for tool in names[turn % len(names) :] + names[: turn % len(names)]:
            alive, score, began = rows, scores[tool], time.process_time()
            for stage, run in enumerate(contest.tools[tool]):
                start = time.process_time()
                if len(alive):
                    x_adv = run(x[alive].clone(), y[alive].clone(), alive).detach()
                    with torch.no_grad():
                        broken = (network(x_adv).argmax(dim=1) != y[alive]) & legal(x[alive], x_adv, "linf", eps)
                    score.robust[stage:, alive[broken]] = False
                    alive = alive[~broken]
                score.parts[stage] += time.process_time() - start
            score.seconds.append(time.process_time() - began)
    return scores


def table(contest: Contest, scores: dict[str, Score], n: int) -> Iterator[str]:
    """Lines of Markdown: one a tool, and for several attacks one a stage."""
    mine = scores["atbench"]
    for tool, score in scores.items():
        for stage in range(len(score.robust)):
            name = contest.name if len(score.robust) == 1 else f"{contest.name}, after attack {stage + 1}"
            found = accuracy_figures(int(score.robust[stage].sum()), n)
            value, low, high = (100 * found[key] for key in ("accuracy", "low", "high"))
            same = (score.robust[stage] == mine.robust[stage]).float().mean()
            last = stage == len(score.robust) - 1
            ratios = [theirs / ours for theirs, ours in zip(score.seconds, mine.seconds, strict=True)]
            ratio = statistics.median(ratios) if last else score.parts[stage] / mine.parts[stage]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if last else ""
            agreement = "" if tool == "atbench" else f"{100 * same:.1f} %"
            times = "1" if tool == "atbench" else f"{ratio:.2f}{spread}"
            yield f"| {name} | {tool} | {value:.1f} % [{low:.1f}, {high:.1f}] | {agreement} | {times} |"


def images(test: Images, network: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """Those of the first n test images that the network has right."""
    x, y = test.floats(torch.arange(n)), test.y[:n]
    with torch.no_grad():
        right = network(x).argmax(dim=1) == y
    return x[right], y[right]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder of atbench")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--only", nargs="*", help="fixed, prefixes, apgd, autoattack")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    _, _, saved = resolve_target(given.run, ["best"])
    cfg = OmegaConf.create({**saved, "data_dir": given.data_dir})
    source = factory.make_source(cfg)
    network = eval_plan.load_frozen_network(given.run, source, torch.device("cpu"))
    x, y = images(source.test(), network, given.n)
    lines = [f"{len(x)} of {given.n} test images are right without an attack; eps {given.eps:g}, one thread.", ""]
    lines += [
        "| attack | tool | robust accuracy | agreement with atbench | time, atbench = 1 |",
        "|---|---|---|---|---|",
    ]
    for name, group in contests(network, given.eps, source.shape).items():
        for contest in group if not given.only or name in given.only else []:
            found = list(table(contest, play(network, contest, x, y, given.eps), given.n))
            print("\n".join(found), flush=True)
            lines += found
            if given.out:
                given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
