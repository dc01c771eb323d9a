"""Transfer between the members of an ensemble: PGD on each of them, its images judged by all.

Source: zjysteven/DVERGE, eval/eval_transferability.py (Yang et al. 2020, NeurIPS, arXiv 2009.14720): one PGD on the
cross-entropy of each member, the last iterate, on images that all members classify right. The authors' success rate is
1 − the robust accuracy here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, label_objective
from atbench.data import Images
from atbench.evaluation.attack_runner import legal
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.pgd_sweep import PGDConfig
from atbench.evaluation.result_cache import ResultCache
from atbench.interval import accuracy_figures
from atbench.models import Ensemble
from atbench.runs.seeding import ExampleDraws, derive_seed

Array = NDArray[Any]


@dataclass(frozen=True)
class MemberAttack:
    """PGD on one of M members: its images that any member gets wrong.

    rows, x_adv: int64 (m,) and float32 (m, C, H, W), the examples and their images. fooled: booleans (m, M), which
    members get them wrong. seconds, forwards, gradients: cost; passes are those of a single member.
    """

    rows: Array
    x_adv: Array
    fooled: Array
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0


@dataclass(frozen=True)
class MemberTransfer:
    """Attacks on all members of an ensemble. right: booleans (M, n), which examples each has right without one."""

    config: PGDConfig
    right: Array
    attacks: Sequence[MemberAttack]

    @property
    def shared(self) -> Array:
        """(n,) booleans: the examples that all members have right, which alone are attacked."""
        return np.logical_and.reduce(self.right)

    @property
    def fooled(self) -> Array:
        """(M, M, n) booleans: [i, j] is where member j gets the image wrong that was made on member i."""
        fooled = np.zeros((len(self.right), *self.right.shape), bool)
        for masks, attack in zip(fooled, self.attacks, strict=True):
            masks[:, attack.rows] = attack.fooled.T
        return fooled


def ensemble_members(network: nn.Module) -> list[nn.Module]:
    """The members of an ensemble; none of any other network."""
    return list(network.members) if isinstance(network, Ensemble) else []


def attack_members(eval_model: EvalModel, images: Images, config: PGDConfig, cache: ResultCache) -> MemberTransfer:
    """Run PGD of `config` on each member, from one start and to its last step, on what all members have right."""
    right = members_right(eval_model, images)
    rows, attacks = torch.from_numpy(np.logical_and.reduce(right)).nonzero().flatten(), []
    nothing = {key: np.zeros(0) for key in ("seconds", "forwards", "gradients")}
    nothing |= {"fooled": np.zeros((0, len(right)), bool), "x_adv": np.zeros((0, *images.x.shape[1:]), np.float32)}
    for number in range(len(right)):
        work = partial(_attack_batch, eval_model, images, config, number)
        columns = cache.measure(eval_model, f"member{number}", asdict(config), rows, work) or nothing
        kept = columns["fooled"].any(axis=1)
        seconds, forwards, gradients = (float(columns[key].sum()) for key in ("seconds", "forwards", "gradients"))
        found = rows.numpy()[kept], columns["x_adv"][kept], columns["fooled"][kept]
        attacks.append(MemberAttack(*found, round(seconds, 3), round(forwards), round(gradients)))
    return MemberTransfer(config, right, attacks)


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
    torch.manual_seed(derive_seed(config.seed, name, int(rows[0])))  # for networks that draw numbers of their own
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
    eval_model: EvalModel, images: Images, config: PGDConfig, kept: Sequence[tuple[Array, Tensor]]
) -> MemberTransfer:
    """The result that kept images prove: of each member the examples and the images made on it."""
    right, attacks = members_right(eval_model, images), []
    shared = np.logical_and.reduce(right)
    for number, (rows, x_adv) in enumerate(kept):
        fooled = np.zeros((len(rows), len(right)), bool)
        for part in torch.arange(len(rows)).split(eval_model.batch_size):
            index = torch.from_numpy(rows)[part]
            fooled[part] = judge(eval_model, images, config, number, index, x_adv[part]).cpu().numpy()
        proven = shared[rows] & fooled.any(axis=1)
        attacks.append(MemberAttack(rows[proven], x_adv.numpy()[proven], fooled[proven]))
    return MemberTransfer(config, right, attacks)


def transfer_figures(transfer: MemberTransfer) -> dict[str, Any]:
    """The part `members` of a record: `robust[i][j]` is member j's accuracy on the images made on member i, of the n
    examples that all members have right; empty where there is none.
    """
    n = int(transfer.shared.sum())
    wrong = [each.fooled.sum(axis=0).tolist() for each in transfer.attacks if n]
    robust = [[accuracy_figures(n - count, n) for count in counts] for counts in wrong]
    return {
        "attack": {"name": "pgd", **asdict(transfer.config)},
        "n": n,
        "robust": robust,
        "seconds": round(sum(each.seconds for each in transfer.attacks), 3),
        "forwards": sum(each.forwards for each in transfer.attacks),
        "gradients": sum(each.gradients for each in transfer.attacks),
    }
