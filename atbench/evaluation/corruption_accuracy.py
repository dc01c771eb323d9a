"""Accuracy on images with common corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from atbench.data import Images
from atbench.data.corruptions import CorruptedImages
from atbench.errors import ConfigError
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.metrics import Array, corruption_figures


def corruption_accuracy(
    eval_model: EvalModel, images: Images, names: Sequence[str], severities: Sequence[int], seed: int
) -> tuple[dict[str, Any], Array]:
    """Accuracy under each corruption at each severity (atbench.data.corruptions), all on the same n images.

    Returns {"n", "seed", "rows": [{"name", "severity", "accuracy", "low", "high", "n"}, ...], "mean": {"accuracy",
    "low", "high", "n"}} and the R × n masks that the rows are means of. `mean` is over all rows.

    Raises ConfigError for a name or severity that there is not, before any image is looked at.
    """
    if not names or not severities or 0 in severities:
        why = "an evaluation on corrupted images needs corruptions, and severities from 1"
        raise ConfigError("eval.corruptions", f"{list(names)} at {list(severities)}", why, "name some, or leave it out")
    position = images.indices(torch.arange(len(images)))
    plan = [
        CorruptedImages(images.x, images.y, name, severity, seed, position) for name in names for severity in severities
    ]
    masks = np.stack([eval_model.correct(view).numpy() for view in plan])
    facts = {"seed": seed, "rows": [{"name": view.name, "severity": view.severity} for view in plan]}
    return corruption_figures(facts, masks), masks
