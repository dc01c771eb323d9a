"""Transfer between the members of an ensemble: PGD on each of them, its images judged by all.

Source: zjysteven/DVERGE, eval/eval_transferability.py (Yang et al. 2020, NeurIPS, arXiv 2009.14720): one PGD on the
cross-entropy of each member, the last iterate, on images that all members classify right. The authors' success rate is
1 − the robust accuracy here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, label_objective
from atbench.data import Images
from atbench.evaluation.attack_result import COST, AttackResult, total_cost
from atbench.evaluation.attack_runner import legal
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import EvalResults
from atbench.evaluation.metrics import Array
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.result_cache import ResultCache
from atbench.models import Ensemble
from atbench.runs.seeding import ExampleDraws, derive_seed, seed_global


def ensemble_members(network: nn.Module) -> list[nn.Module]:
    """The members of an ensemble; none of any other network."""
    return list(network.members) if isinstance(network, Ensemble) else []


def attack_members(
    eval_model: EvalModel, images: Images, config: PGDConfig, right: Array, cache: ResultCache
) -> list[AttackResult]:
    """Run PGD of `config` on each member, from one start and to its last step, on what all members have `right`,
    booleans (M, n). An image counts as broken that any member gets wrong.
    """
    tried, results = torch.from_numpy(np.logical_and.reduce(right)), []
    nothing = {"x_adv": np.zeros((0, *images.x.shape[1:]), np.float32), "fooled": np.zeros((0, len(right)), bool)}
    nothing |= {"broken": np.zeros(0, bool), **dict.fromkeys(COST, np.zeros(0))}
    for number in range(len(right)):
        work = partial(_attack_batch, eval_model, images, config, number)
        rows = tried.nonzero().flatten()
        columns = cache.measure(eval_model, f"member{number}", asdict(config), rows, work) or nothing
        broken = {"broken": np.asarray(columns["fooled"].any(axis=1))}
        results.append(AttackResult.of(f"member{number}", "transfer", tried, {**columns, **broken}))
    return results


def add_members(results: EvalResults, config: PGDConfig, right: Array, attacks: Sequence[AttackResult]) -> None:
    """Put the attacks on all members into the results: fooled[i, j] is where member j gets wrong what was made on i."""
    fooled = np.zeros((len(right), *right.shape), bool)
    for number, result in enumerate(attacks):
        fooled[number][:, result.rows] = result.kept["fooled"].T
        results.examples |= {f"{result.name}.rows": result.rows, f"{result.name}.x_adv": result.kept["x_adv"]}
    results.outcomes |= {"members_right": right, "members_fooled": fooled}
    results.facts["members"] = {"attack": {"name": "pgd", **asdict(config)}, **total_cost(attacks)}


def members_right(eval_model: EvalModel, images: Images) -> Array:
    """(M, n) booleans: which examples each member classifies right without an attack."""
    masks = []
    for member in ensemble_members(eval_model.network):
        with eval_model.answering_with(member):
            masks.append(eval_model.correct(images).numpy())
    return np.stack(masks)


def _attack_batch(
    eval_model: EvalModel, images: Images, config: PGDConfig, number: int, rows: Tensor
) -> dict[str, Tensor]:
    """PGD on member `number` for the examples `rows`, judged by all members."""
    name, (x, y) = f"member{number}", eval_model.load(images, rows)
    attack = GradientAttack(config.norm, config.eps, config.steps, config.step_size, config.start)
    objective = Objective(eval_model.logits, label_objective(config.objective), y)
    seed_global(derive_seed(config.seed, name, int(rows[0])), x.device)  # for networks that draw numbers of their own
    with eval_model.ready(), eval_model.answering_with(ensemble_members(eval_model.network)[number]):
        x_adv = attack(objective, x, rng=ExampleDraws(config.seed, name, index=images.indices(rows))).float()
    return {"x_adv": x_adv, "fooled": judge(eval_model, images, config, number, rows, x_adv)}


def judge(eval_model: EvalModel, images: Images, config: PGDConfig, number: int, rows: Tensor, x_adv: Tensor) -> Tensor:
    """(B, M) booleans: which members get the images wrong that were made on member `number`; none if not legal."""
    x, y = eval_model.load(images, rows)
    x_adv = x_adv.to(x)
    inside = legal(x, x_adv, config.norm, config.eps)
    shown, wrong = torch.where(torch.isfinite(x_adv), x_adv, x), []
    with eval_model.ready(), torch.no_grad():
        for member in ensemble_members(eval_model.network):
            with eval_model.answering_with(member):
                logits = eval_model.seeded_logits(shown, images.indices(rows), config.seed, f"member{number}")
            wrong.append((logits.argmax(dim=1) != y) & inside)
    return torch.stack(wrong, dim=1)


def judge_again(
    eval_model: EvalModel, images: Images, config: PGDConfig, right: Array, kept: Sequence[tuple[Array, Tensor]]
) -> list[AttackResult]:
    """The results that kept images prove: of each member the examples and the images made on it."""
    shared, results = torch.from_numpy(np.logical_and.reduce(right)), []
    for number, (rows, x_adv) in enumerate(kept):
        fooled = np.zeros((len(rows), len(right)), bool)
        for part in torch.arange(len(rows)).split(eval_model.batch_size):
            index = torch.from_numpy(rows)[part]
            fooled[part] = judge(eval_model, images, config, number, index, x_adv[part]).cpu().numpy()
        proven = shared.numpy()[rows] & fooled.any(axis=1)
        columns = {"x_adv": x_adv.numpy()[proven], "fooled": fooled[proven]}
        results.append(AttackResult(f"member{number}", "transfer", shared, shared, rows=rows[proven], kept=columns))
    return results
