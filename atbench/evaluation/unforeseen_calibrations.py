"""UAR of outcomes; its sizes and reference accuracies: what training against a distortion reaches (ATA).

Source: ddkang/advex-uar (Kang et al. 2019), advex_uar/analysis/calibrations/{cifar-10,imagenet-100}/calibs.out, of 200
steps; L1 in grey levels of the whole image, as in the README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from atbench.evaluation.metrics import Array
from atbench.interval import accuracy_figures

STEPS = 200


@dataclass(frozen=True)
class Calibration:
    """Six sizes and ATA(A, ε) of each attack, in the images and with the network named by `of`."""

    of: str
    side: int
    sizes: Mapping[str, tuple[float, ...]]
    ata: Mapping[str, tuple[float, ...]]


CALIBRATIONS: Mapping[str, Calibration] = {
    "cifar10": Calibration(
        of="CIFAR-10, ResNet-56",
        side=32,
        sizes={
            "linf": (1, 2, 4, 8, 16, 32),
            "l2": (40, 80, 160, 320, 640, 2560),
            "l1": (195, 390, 780, 1560, 6240, 24960),
            "jpeg_linf": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1),
            "jpeg_l2": (0.25, 0.5, 1, 2, 4, 8),  # in calibs.out, and not in the README
            "jpeg_l1": (2, 8, 64, 256, 512, 1024),
            "elastic": (0.125, 0.25, 0.5, 1, 2, 8),
        },
        ata={
            "linf": (0.9095, 0.8780, 0.8159, 0.7134, 0.4650, 0.2311),
            "l2": (0.9006, 0.8640, 0.7960, 0.6726, 0.4989, 0.1727),
            "l1": (0.9223, 0.9002, 0.8324, 0.7383, 0.4736, 0.3533),
            "jpeg_linf": (0.8975, 0.8703, 0.8312, 0.7856, 0.6971, 0.3542),
            "jpeg_l2": (0.9218, 0.9099, 0.8842, 0.8584, 0.8125, 0.7198),
            "jpeg_l1": (0.9142, 0.8806, 0.8021, 0.6886, 0.5633, 0.3768),
            "elastic": (0.8738, 0.8126, 0.7209, 0.5822, 0.4545, 0.2785),
        },
    ),
    "imagenet100": Calibration(
        of="ImageNet-100 (every tenth class), ResNet-50",
        side=224,
        sizes={
            "linf": (1, 2, 4, 8, 16, 32),
            "l2": (150, 300, 600, 1200, 2400, 4800),
            "l1": (9562.5, 19125, 76500, 153000, 306000, 612000),
            "jpeg_linf": (0.0625, 0.125, 0.25, 0.5, 1, 2),
            "jpeg_l2": (8, 16, 32, 64, 128, 256),
            "jpeg_l1": (256, 1024, 4096, 16384, 65536, 131072),
            "elastic": (0.25, 0.5, 2, 4, 8, 16),
            "fog": (128, 256, 512, 2048, 4096, 8192),
            "snow": (0.0625, 0.125, 0.25, 2, 4, 8),
            "gabor": (6.25, 12.5, 25, 400, 800, 1600),
        },
        ata={
            "linf": (0.8464, 0.8212, 0.7624, 0.6690, 0.4006, 0.1288),
            "l2": (0.8502, 0.8350, 0.7960, 0.7256, 0.5914, 0.1990),
            "l1": (0.8438, 0.8274, 0.7626, 0.6890, 0.5644, 0.3614),
            "jpeg_linf": (0.8504, 0.8324, 0.7932, 0.7276, 0.3480, 0.0110),
            "jpeg_l2": (0.8478, 0.8246, 0.7894, 0.7232, 0.4746, 0.0344),
            "jpeg_l1": (0.8476, 0.8176, 0.7622, 0.6710, 0.4638, 0.4184),
            "elastic": (0.8588, 0.8318, 0.7806, 0.7564, 0.5704, 0.2254),
            "fog": (0.8582, 0.8384, 0.7898, 0.6840, 0.6788, 0.6466),
            "snow": (0.8402, 0.8114, 0.7770, 0.6562, 0.5954, 0.4120),
            "gabor": (0.8402, 0.7984, 0.7984, 0.6622, 0.4468, 0.1460),
        },
    ),
}


def nearest_calibration(side: int) -> str:
    """The calibration of images of about this size, whose sizes serve where a data set has none."""
    return min(CALIBRATIONS, key=lambda name: abs(log(CALIBRATIONS[name].side / side)))


def unforeseen_figures(facts: Mapping[str, Any], robust: Array) -> dict[str, Any]:
    """The part `unforeseen` of a record: accuracies by attack and ε, UAR of each attack, and mUAR.

    facts: the plan, names and units of the attacks, cost. robust: booleans (A, S, n), right by attack and size.

    `data` and every `uar` are null where there are no reference accuracies. The interval of a UAR is that of its mean
    accuracy over the sizes, a score of n images; that of mUAR the mean of theirs, which is too wide rather than too
    narrow.
    """
    data, n = facts["data"], robust.shape[-1]
    attacks, known = list[dict[str, Any]](), list[dict[str, float]]()
    for given, masks in zip(facts["attacks"], robust, strict=True):
        name, scores = given["name"], accuracy_figures(float(masks.mean(axis=0).sum()), n)
        ata = CALIBRATIONS[data].ata[name] if data else None
        rows = [
            {"eps": float(eps), **accuracy_figures(int(mask.sum()), n), "ata": ata[k] if ata else None}
            for k, (eps, mask) in enumerate(zip(CALIBRATIONS[facts["sizes_of"]].sizes[name], masks, strict=True))
        ]
        uar = _uar(scores, ata) if ata else None
        known += [uar] if uar else []
        attacks.append({"name": name, "unit": given["unit"], "sizes": rows, "mean": scores, "uar": uar})
    return {
        "data": data,
        "sizes_of": facts["sizes_of"],
        "steps": facts["steps"],
        "n": n,
        "note": _note(facts),
        "attacks": attacks,
        "muar": {key: float(np.mean([uar[key] for uar in known])) for key in ("uar", "low", "high")} if known else None,
        **{key: facts[key] for key in ("seconds", "forwards", "gradients")},
    }


def _uar(mean: Mapping[str, float], ata: Sequence[float]) -> dict[str, float]:
    """UAR with the interval of the mean accuracy over the sizes."""
    names = {"uar": "accuracy", "low": "low", "high": "high"}
    return {key: mean[name] * len(ata) / sum(ata) for key, name in names.items()}


def _note(facts: Mapping[str, Any]) -> str | None:
    if facts["data"] is None:
        return f"no reference accuracies of this data set, so that UAR is not defined; sizes of {facts['sizes_of']}"
    return None if facts["steps"] == STEPS else f"{facts['steps']} steps; the reference accuracies are of {STEPS}"
