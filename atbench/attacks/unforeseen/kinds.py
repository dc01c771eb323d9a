"""The distortions by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping

from atbench.attacks.unforeseen.distortion import Distortion
from atbench.attacks.unforeseen.elastic import Elastic
from atbench.attacks.unforeseen.gabor import Gabor
from atbench.attacks.unforeseen.jpeg import JPEGL1, JPEGL2, JPEGLinf
from atbench.attacks.unforeseen.pixels import L2, FrankWolfeL1, Linf
from atbench.attacks.unforeseen.weather import Fog, Snow

DISTORTIONS: Mapping[str, type[Distortion]] = {
    "linf": Linf,
    "l2": L2,
    "l1": FrankWolfeL1,
    "jpeg_linf": JPEGLinf,
    "jpeg_l2": JPEGL2,
    "jpeg_l1": JPEGL1,
    "elastic": Elastic,
    "fog": Fog,
    "snow": Snow,
    "gabor": Gabor,
}
