"""ResNets with the activation after the sum (He et al. 2016a, CVPR, arXiv 1512.03385).

Our own and not torchvision's: there a block calls one ReLU in place at several places and ends with it, so that neither
an activation of one's choice, nor dropout after each, nor a cut before the activation has a place. Weights in
torchvision's and in pytorch-cifar's names load (`published_weights.py`). Blocks and widths are in conf/model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atbench.config.ranges import Count, Positive
from atbench.errors import ConfigError
from atbench.models.activations import ActivationFactory, activation_factory
from atbench.models.heads import make_head
from atbench.models.network import Network, Shape, has_large_stem, require_side, sequential

RESNET_SHORTCUTS = ("conv", "raw", "pad")


class PadShortcut(nn.Module):
    """Option A of He et al.: every `stride`-th pixel, and zero channels on both sides; no parameters."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.more // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))


class ResidualBlock(nn.Module):
    """z ↦ r(a(z)) + s(a(z)): the usual residual block with its activation a moved from its end to its start.

    The same function of the image once blocks are chained, with cuts between blocks that are pre-activation.
    r = conv3-bn-act-conv3-bn, or with `bottleneck` conv1-bn-act-conv3-bn-act-conv1-bn with the stride in the 3×3.

    Args:
        enter: what comes before: the activation, and a pool after an ImageNet stem's.
        rectified: r of the two 3×3 ends with an activation of its own.
        count, width, stride: channels in, channels of the 3×3, its stride.
    """

    def __init__(
        self,
        enter: nn.Module,
        count: int,
        width: Count,
        stride: int,
        act: ActivationFactory,
        bottleneck: bool,
        shortcut: str,
        bias: bool = False,
        rectified: bool = False,
    ) -> None:
        super().__init__()
        self.enter = enter
        out = 4 * width if bottleneck else width
        if bottleneck:
            self.residual = sequential(
                conv1=nn.Conv2d(count, width, 1, bias=bias),
                bn1=nn.BatchNorm2d(width),
                act1=act(),
                conv2=nn.Conv2d(width, width, 3, stride, 1, bias=bias),
                bn2=nn.BatchNorm2d(width),
                act2=act(),
                conv3=nn.Conv2d(width, out, 1, bias=bias),
                bn3=nn.BatchNorm2d(out),
            )
        else:
            self.residual = sequential(
                conv1=nn.Conv2d(count, width, 3, stride, 1, bias=bias),
                bn1=nn.BatchNorm2d(width),
                act1=act(),
                conv2=nn.Conv2d(width, out, 3, 1, 1, bias=bias),
                bn2=nn.BatchNorm2d(out),
            )
            if rectified:
                self.residual.add_module("act2", act())
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or count != out:
            conv = nn.Conv2d(count, out, 1, stride, bias=bias)
            if shortcut == "conv":
                self.shortcut = sequential(conv=conv, bn=nn.BatchNorm2d(out))
            else:
                self.shortcut = conv if shortcut == "raw" else PadShortcut(out - count, stride)

    def forward(self, z: Tensor) -> Tensor:
        x = self.enter(z)
        return self.residual(x) + self.shortcut(x)


class ResNet(Network):
    """Stages conv1 | bn1 | a block each | act, average pool. From 8×8 pixels up.

    Convolutions start at N(0, 2/(k²·out)) as in He et al. 2015 and torchvision.

    Args:
        blocks: blocks in each group; every group after the first halves the image and doubles the width.
        width: channels of the first group's 3×3 convolutions.
        stem_width: channels of the first convolution; null for `width`.
        bottleneck: blocks of three convolutions that leave four times their width.
        shortcut: where the shape changes, `conv` (1×1 convolution and BatchNorm, option B), `raw` (without BatchNorm,
            as Keras' example) or `pad` (option A).
        conv_bias: whether convolutions have biases, as Keras' have.
        rectified: an activation behind the residual branch of a block without bottleneck, before the sum
            (val-iisc/GAMA-GAT and NuAT): as many parameters, and another function; a cut behind it is rectified.
        stem: `small` (3×3, image size kept), `large` (7×7 and pool, a quarter of it), `auto`: large above 64 pixels.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        blocks: Sequence[Count],
        width: Count = 64,
        bottleneck: bool = False,
        shortcut: str = "conv",
        stem: str = "auto",
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
        conv_bias: bool = False,
        stem_width: Count | None = None,
        rectified: bool = False,
    ) -> None:
        if shortcut not in RESNET_SHORTCUTS:
            raise ConfigError(
                "model.shortcut", shortcut, "there is no such choice", f"use {' or '.join(RESNET_SHORTCUTS)}"
            )
        require_side(shape, 8, "resnet")
        act, large = activation_factory(activation), has_large_stem(stem, shape)
        first = (7, 2, 3) if large else (3, 1, 1)
        count = width if stem_width is None else stem_width
        stages: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(shape[0], count, *first, bias=conv_bias),
            "bn1": nn.BatchNorm2d(count),
        }
        enter: nn.Module = sequential(act=act(), pool=nn.MaxPool2d(3, 2, 1)) if large else act()
        for group, number in enumerate(blocks):
            for i in range(number):
                stride = 2 if group > 0 and i == 0 else 1
                out = width * 2**group
                block = ResidualBlock(enter, count, out, stride, act, bottleneck, shortcut, conv_bias, rectified)
                stages[f"layer{group + 1}_{i}"] = block
                count = out * (4 if bottleneck else 1)
                enter = act()
        stages["pool"] = sequential(act=enter, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        super().__init__(sequential(**stages), make_head(head, count, classes, head_scale), mean, std)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
