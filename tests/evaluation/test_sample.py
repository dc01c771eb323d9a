"""Wherever only some examples are looked at, every class is among them, however the data are ordered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atbench.data import Images
from atbench.evaluation import EvalModel, PGDConfig, Plan, evaluate_model, summarize
from atbench.evaluation.audit import audit, outputs
from atbench.training import World
from atbench.training.validation import Validation
from tests.support import worlds

CLASSES, EACH = 10, 12
THREAT = PGDConfig("linf", 0.1, 0.05, 3)


def by_class() -> Images:
    """Pictures sorted by class, as folders of pictures and ImageNet are."""
    y = torch.arange(CLASSES).repeat_interleave(EACH)
    x = torch.randint(0, 256, (len(y), 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x[torch.arange(len(y)), 0, y // 4, y % 4] = 255
    return Images(x, y)


class Brightest(nn.Module):
    """The class is the pixel that is brightest."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, :CLASSES]


def evaluated(**changes: Any) -> dict[str, Any]:
    plan = replace(Plan(THREAT, [3], [0, 1], 3), **changes)
    found = evaluate_model(EvalModel(Brightest(), 16), by_class(), plan)
    return {**summarize(found), "arrays": found.outcomes}


def test_a_limit_leaves_no_class_out() -> None:
    found = evaluated(limit=20)
    assert [each["n"] for each in found["classes"]["classes"]] == [2] * CLASSES


def test_what_a_limited_evaluation_says_of_an_example_the_whole_one_says_too() -> None:
    """Random numbers are those of an example's place in the split."""
    whole, part = evaluated()["arrays"], evaluated(limit=30)["arrays"]
    place = by_class().sample(30).index
    for name in ("clean", "robust", "broken_at"):
        assert np.array_equal(whole[name][place], part[name]), name
    assert 0 < part["robust"].mean() < part["clean"].mean()


def test_pictures_are_of_many_classes() -> None:
    arrays = evaluated()["arrays"]
    shown = arrays["label"][arrays["shown_index"]]
    assert len(set(shown.tolist())) >= 7 and not np.array_equal(shown, np.arange(len(shown)))


def test_the_audit_probes_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    measure, depend = outputs.measure_outputs, outputs._batch_dependence

    def looked(eval_model: EvalModel, images: Images, rows: torch.Tensor) -> Any:
        seen.append(images.y[rows])
        return measure(eval_model, images, rows)

    def accompanied(eval_model: EvalModel, images: Images, rows: torch.Tensor) -> float:
        seen.append(images.y[rows])
        return depend(eval_model, images, rows)

    monkeypatch.setattr(audit, "measure_outputs", looked)
    monkeypatch.setattr(outputs, "_batch_dependence", accompanied)
    evaluated(audit=20)
    assert [len(labels.unique()) >= 8 for labels in seen] == [True, True], seen


def test_selection_and_fit_see_every_class() -> None:
    source = worlds.source(n=400, validation=100)
    order = source.train.y.argsort(stable=True)
    data = worlds.data(replace(source, train=source.train.take(order)))
    assert bool((data.validation.y.diff() >= 0).all()), "sorted by class"
    validation = Validation(data, THREAT, 30, World(torch.device("cpu")))
    classes = len(source.classes)
    for images in (validation.held, validation.fitted):
        count = torch.bincount(images.y, minlength=classes)
        assert len(images) == 30 and int(count.min()) >= 30 // classes - 1 and int(count.max()) <= 30 // classes + 2
