"""A small convolutional network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atbench.config.ranges import Count, Positive
from atbench.errors import refuse_unknown
from atbench.models.activations import activation_factory
from atbench.models.heads import make_head
from atbench.models.network import Network, Shape, require_side

NORMS = ("batch", "none")


class AvgPool2x2(nn.AdaptiveAvgPool2d):
    """Average pooling to 2×2. Images of 8×8 arrive here with 2×2 already: torch would take a tenth of a step for it."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-2:] == (2, 2) else super().forward(x)


class CNN(Network):
    """Pre-activation CNN: a 3×3 stem, three blocks norm-act-conv (the second and third halve the image), average pool
    to 2×2.

    Widths w, w, 2w, 4w. From 8×8 pixels up. `norm: none` gives a network whose examples do not see each other.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: Count = 32,
        norm: str = "batch",
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        refuse_unknown("model.norm", norm, NORMS)
        require_side(shape, 8, "cnn")
        act = activation_factory(activation)

        def before(count: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(count) if norm == "batch" else nn.Identity(), act()]

        def block(count: int, out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(*before(count), nn.Conv2d(count, out, 3, stride, 1, bias=norm == "none"))

        stages = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, 1, 1, bias=norm == "none"),
            block(width, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 4 * width, 2),
            nn.Sequential(*before(4 * width), AvgPool2x2(), nn.Flatten()),
        )
        super().__init__(stages, make_head(head, 16 * width, classes, head_scale), mean, std)
