"""An evaluation as a record: figures with their n and interval, and the per-example outcomes that they are means of."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atbench.data import Images
from atbench.evaluation.interval import figure
from atbench.evaluation.sweep import Threat, Victim, robust
from atbench.folder import write_bytes, write_json

SHOWN = 8
Array = NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """What to evaluate: the main threat, the steps reported of its trajectory, and the ε grid (multiples of its ε)."""

    threat: Threat
    steps: Sequence[int]
    eps_grid: Sequence[float]
    eps_steps: int
    limit: int | None = None


def evaluate(victim: Victim, images: Images, plan: Plan) -> tuple[dict[str, Any], dict[str, Array]]:
    """Run the plan. Returns a record's figures and the arrays of its npz (docs/architecture.md, "The run folder")."""
    began = time.monotonic()
    if plan.limit is not None:
        images = images.take(torch.arange(min(plan.limit, len(images)), device=images.x.device))
    clean = victim.correct(images)
    broken = victim.broken_at(images, plan.threat, clean)
    grid = _grid(victim, images, plan, clean)
    shown, pictures = _pictures(victim, images, plan.threat, clean)
    n = len(images)
    figures = {
        "n": n,
        "attack": {"name": "pgd", **{key: value for key, value in asdict(plan.threat).items() if key != "steps"}},
        "clean": figure(int(clean.sum()), n),
        "steps": [{"k": k, **figure(int(robust(broken, k).sum()), n)} for k in plan.steps],
        "eps": [{"eps": eps, "k": plan.eps_steps, **figure(int(mask.sum()), n)} for eps, mask in grid],
        "bound": "upper",
        "seconds": round(time.monotonic() - began, 2),
        "forward_passes": int(victim.reduce(torch.tensor(victim.passes, device=victim.device))),
        "warnings": warnings(plan.threat),
    }
    arrays = {
        "label": images.y.cpu().numpy(),
        "clean": clean.numpy(),
        "broken_at": broken.numpy(),
        "eps_grid": np.array([eps for eps, _ in grid]),
        "eps_robust": np.stack([mask.numpy() for _, mask in grid]) if grid else np.zeros((0, n), bool),
        "shown_index": shown.numpy(),
        **pictures,
    }
    return figures, arrays


def _grid(victim: Victim, images: Images, plan: Plan, clean: Tensor) -> list[tuple[float, Tensor]]:
    """Robust masks for ascending ε. What is broken within ε is broken within every larger ε: only survivors go on."""
    alive, out = clean, []
    for multiple in sorted(plan.eps_grid):
        eps = multiple * plan.threat.eps
        if multiple > 0:
            size = multiple * plan.threat.step_size
            threat = replace(plan.threat, eps=eps, step_size=size, steps=plan.eps_steps)
            alive = victim.broken_at(images, threat, alive) == -1
        out.append((eps, alive))
    return out


def _pictures(victim: Victim, images: Images, threat: Threat, clean: Tensor) -> tuple[Tensor, dict[str, Array]]:
    """The first right example of each class, up to SHOWN of them, with what the attack makes of it."""
    labels = images.y.cpu()
    rows = [(clean & (labels == label)).nonzero().flatten()[:1] for label in labels.unique()]
    shown = torch.cat(rows)[:SHOWN] if rows else torch.zeros(0, dtype=torch.long)
    few = images.take(shown.to(images.x.device))
    if not len(few):
        empty = np.zeros((0, *images.x.shape[1:]), np.float32)
        none = np.zeros(0, np.int64)
        return shown, {"shown_x": empty, "shown_adv": empty, "shown_clean": none, "shown_broken": none}
    x_adv = victim.adversarial(few, threat)
    x, _ = victim.load(few, torch.arange(len(few)))
    with victim.ready(), torch.no_grad():
        before, after = victim.network(x).argmax(dim=1), victim.network(x_adv).argmax(dim=1)
    return shown, {
        "shown_x": x.float().cpu().numpy(),
        "shown_adv": x_adv.float().cpu().numpy(),
        "shown_clean": before.cpu().numpy(),
        "shown_broken": after.cpu().numpy(),
    }


def warnings(threat: Threat) -> list[str]:
    """What a reader of the figures should know about the attack's own limits."""
    found = []
    reach = threat.steps * threat.step_size
    if 0 < reach < threat.eps:
        short = f"{threat.steps} steps of {threat.step_size:g} move at most {reach:g}"
        found.append(f"{short}: they cannot reach the edge of the ball (eps {threat.eps:g}) from its middle")
    if threat.step_size > 2 * threat.eps:
        found.append(f"a step of {threat.step_size:g} is wider than the whole ball (eps {threat.eps:g}): corners only")
    return found


def weights_sha256(network: nn.Module) -> str:
    """Checksum over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, name: str, record: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write `<name>.npz`, then `<name>.json`: a record never stands without its outcomes.

    An earlier record of the same checkpoint is moved to `earlier/`, with a number: evaluations are not lost.
    """
    if (folder / f"{name}.json").exists():
        earlier = folder / "earlier"
        earlier.mkdir(exist_ok=True)
        number = len(list(earlier.glob(f"{name}-*.json"))) + 1
        for kind in ("json", "npz"):
            (folder / f"{name}.{kind}").replace(earlier / f"{name}-{number}.{kind}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(folder / f"{name}.npz", buffer.getvalue())
    write_json(folder / f"{name}.json", {**record, "outcomes": f"{name}.npz"})
