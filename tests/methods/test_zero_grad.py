"""ZeroGrad and MultiGrad: which components of the gradient make a step, and where the other pixels stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.ascent.step_rules import Zeroed
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods import Method
from atbench.methods.multi_grad import MultiGrad
from atbench.methods.pgd_at import PgdAt
from tests.support import worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.2, "start": "uniform"}


def begun(method: Method) -> Batch:
    given = worlds.data()
    worlds.start(method, given)
    return given.batch(0, 0)


def gradient(method: Method, point: Tensor, y: Tensor) -> Tensor:
    point = point.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(method.model(point), y), point)[0]


@pytest.mark.parametrize("share", [0.35, 0.7])
def test_pixels_below_the_quantile_keep_their_random_start(share: float) -> None:
    method = PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP, zeroed=share))
    batch = begun(method)
    start = (batch.x + 0.1 * method.rng().uniform(batch.x)).clamp(0, 1)
    grad = gradient(method, start, batch.y)
    least = torch.quantile(grad.abs().flatten(1), share, dim=1).view(-1, 1, 1, 1)
    grad[grad.abs() < least] = 0
    expected = (batch.x + (start + 0.2 * grad.sign() - batch.x).clamp(-0.1, 0.1)).clamp(0, 1)
    found = method.perturb(batch).x_adv
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    still = (found == start).double().mean().item()
    assert share - 0.02 <= still <= share + 0.05


@pytest.mark.parametrize("share", [0.0, 0.2, 0.35, 0.5, 1.0])
def test_the_quantile_is_torchs(share: float) -> None:
    grad = torch.randn((5, 1, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = Zeroed(lambda x_adv, left, sizes: left, share)(grad, grad, 1.0)
    least = torch.quantile(grad.abs().flatten(1), share, dim=1).view(-1, 1, 1, 1)
    assert torch.equal(kept, torch.where(grad.abs() < least, 0, grad))


@pytest.mark.parametrize(("starts", "agree"), [(3, None), (3, 2), (5, 4), (1, None)])
def test_signs_that_agree_move_a_pixel_to_the_edge_and_no_other_moves(starts: int, agree: int | None) -> None:
    method = MultiGrad(worlds.cnn(), worlds.attack(**ONE_STEP), starts, agree)
    batch = begun(method)
    rng, signs = method.rng(), []
    for _ in range(starts):
        start = (batch.x + 0.1 * rng.uniform(batch.x)).clamp(0, 1)
        signs.append(gradient(method, start, batch.y).sign().flatten().tolist())
    moves = []
    for votes in zip(*signs, strict=True):
        up, down, needed = votes.count(1.0), votes.count(-1.0), agree or starts
        moves.append(0.1 if up >= needed else -0.1 if down >= needed else 0.0)
    expected = (batch.x + torch.tensor(moves, dtype=torch.float64).view_as(batch.x)).clamp(0, 1)
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-15)
    # Of an odd number of signs one has the simple majority, and of a single one it is all.
    assert (0.0 in moves) == (2 * (agree or starts) - starts > 1) and 0.1 in moves


def test_every_start_is_a_forward_of_its_own() -> None:
    method = MultiGrad(worlds.cnn(norm="batch"), worlds.attack(**ONE_STEP, bn="train"), 3)
    method.loss(method.perturb(begun(method)))
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(int(norm.num_batches_tracked) == 4 for norm in norms)


@pytest.mark.parametrize("agree", [1, 4])
def test_less_than_a_majority_and_more_than_all_are_refused(agree: int) -> None:
    with pytest.raises(ConfigError, match=r"method\.agree"):
        MultiGrad(worlds.cnn(), worlds.attack(**ONE_STEP), 3, agree)
    with pytest.raises(ConfigError, match=r"attack\.norm"):
        MultiGrad(worlds.cnn(), worlds.attack(**ONE_STEP, norm="l2"))


def test_contract() -> None:
    method = MultiGrad(worlds.cnn(), worlds.attack(**ONE_STEP))
    batch = worlds.check_pure(method, begun(method))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_ranks(lambda given: MultiGrad(worlds.cnn(), worlds.attack(**ONE_STEP)))
    worlds.check_ranks(lambda given: PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP, zeroed=0.35)))
