"""Accuracy on images with common corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atbench.data import Images
from atbench.data.corruptions import CorruptedImages
from atbench.errors import ConfigError
from atbench.evaluation.eval_model import EvalModel
from atbench.interval import accuracy_figures


def corruption_accuracy(
    eval_model: EvalModel, images: Images, names: Sequence[str], severities: Sequence[int], seed: int
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Accuracy under each corruption at each severity (atbench.data.corruptions), all on the same n images.

    Returns {"n", "seed", "rows": [{"name", "severity", "accuracy", "low", "high", "n"}, ...], "mean": {"accuracy",
    "low", "high", "n"}} and the R × n masks that the rows are means of. `mean` is over all rows. An image is in each of
    them, so that its interval is that of n proportions, not of R·n independent ones: Wilson's at this mean, which is
    wide enough, for no score between 0 and 1 varies more than a proportion of the same mean.

    Raises ConfigError for a name or severity that there is not, before any image is looked at.
    """
    if not names or not severities or 0 in severities:
        why = "an evaluation on corrupted images needs corruptions, and severities from 1"
        raise ConfigError("eval.corruptions", f"{list(names)} at {list(severities)}", why, "name some, or leave it out")
    position = images.indices(torch.arange(len(images)))
    plan = [
        CorruptedImages(images.x, images.y, name, severity, seed, position) for name in names for severity in severities
    ]
    n = len(images)
    masks = np.stack([eval_model.correct(view).numpy() for view in plan])
    rows = [
        {"name": view.name, "severity": view.severity, **accuracy_figures(int(mask.sum()), n), "n": n}
        for view, mask in zip(plan, masks, strict=True)
    ]
    mean = float(masks.mean())
    return {
        "n": n,
        "seed": seed,
        "rows": rows,
        "mean": {**accuracy_figures(mean * n, n), "accuracy": mean, "n": n},
    }, masks
