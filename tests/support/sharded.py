"""Trainings on two processes with the network shared out among them (`train.shard`), and without."""

from __future__ import annotations

import faulthandler
import io
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from atbench.errors import Interrupted
from atbench.training import World
from atbench.training.param_groups import fused_on_cuda
from tests.support.contract import Log, count_commits, trainer_of

SHARD = "train.shard=true"
PATIENCE = 120  # seconds until processes that wait for each other are ended


def both(name: str, here: World, *overrides: str) -> dict[str, Any]:
    """Train a method shared out and replicated; what the two came to, and how much this process held of the first."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    result: dict[str, Any] = {}
    for key, words in (("sharded", (*overrides, SHARD)), ("replicated", overrides)):
        log = Log()
        trainer = trainer_of(name, here, log, *words)
        counts = count_commits(trainer.method)
        held = [[local(weight).numel() for weight in trainer.method.model.parameters()]]
        trainer.fit()
        held.append([local(weight).numel() for weight in trainer.method.model.parameters()])
        slots = trainer.groups[0].optimizer.state.values()
        held.append([next(local(value).numel() for value in slot.values() if value.ndim) for slot in slots])
        result[key] = {
            "state": trainer.state()["method"],
            "rows": [{part: row[part] for part in ("train", "val", "fit")} for row in log.rows],
            "saved": sorted(log.saved),
            "held": held,
            "counts": counts,
            "fused": fused(list(trainer.method.model.parameters())),
        }
    faulthandler.cancel_dump_traceback_later()
    return result


def fused(parameters: list[nn.Parameter]) -> bool:
    """Whether these would be updated by fused kernels if they were on CUDA."""
    with patch.object(torch.Tensor, "is_cuda", True):
        return "fused" in fused_on_cuda(partial(torch.optim.SGD, lr=1.0), parameters).keywords


def resumed(name: str, here: World, *overrides: str) -> dict[str, Any]:
    """A training that is shared out, undisturbed and taken up again in its second epoch, shared out or not."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    words = (*overrides, SHARD)
    undisturbed, log = trainer_of(name, here, Log(), *words), Log()
    undisturbed.fit()
    with pytest.raises(Interrupted):  # several processes ask at every tenth step, and after epochs
        trainer_of(name, here, log, *words, stop_after=3).fit()
    last = here.share_object(log.saved.get("last"))
    result: dict[str, Any] = {"undisturbed": undisturbed.state(), "last": loaded(last)}
    for key, again in (("resumed", words), ("replicated", overrides)):
        trainer = trainer_of(name, here, Log(), *again)
        trainer.load(loaded(last))
        trainer.fit()
        result[key] = trainer.state()
    result["kept"] = kept(name, here, *words)
    faulthandler.cancel_dump_traceback_later()
    return result


def kept(name: str, here: World, *words: str) -> list[dict[str, Any]]:
    """A state as it was kept, and after going back to it, in the same process and from a checkpoint."""
    trainer, again = (trainer_of(name, here, Log(), *words) for _ in range(2))
    trainer.train_batch()
    before = trainer.state()
    trainer.kept.keep("before")
    trainer.train_batch()
    again.load(here.share_object(trainer.state()))
    states = [before, again.state()]
    for each in (trainer, again):
        each.kept.restore("before", ("model", "optimizer"))
        states.append(each.state())
    return states


def loaded(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return content


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
