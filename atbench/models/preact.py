"""Pre-activation residual networks: PreActResNets and Wide ResNets.

Their blocks end with the sum, so that every cut between two stages is pre-activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from atbench.config.ranges import Count, Positive, SomeShare
from atbench.errors import ConfigError, refuse_unknown
from atbench.models.activations import ActivationFactory, activation_factory
from atbench.models.heads import make_head
from atbench.models.network import Network, Shape, has_large_stem, require_side, sequential

PREACT_SHORTCUTS = ("activated", "raw", "raw3x3")
WRN_SHORTCUTS = ("activated", "projection", "pool", "pool3x3")
PADDINGS = ("symmetric", "same")


class SamePadConv2d(nn.Conv2d):
    """A 3×3 convolution of stride 2 with TensorFlow's `SAME`: of even sides it pads the far ones only (DeepMind)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1)))


class PoolShortcut(nn.Module):
    """A shortcut without parameters: average pool, and zero channels in place of those that are missing.

    Args:
        kernel: `stride` cuts the image into tiles, with zero channels on both sides (Madry et al. 2018); 3 overlaps,
            with zero channels behind (Balaji et al. 2019).
    """

    def __init__(self, more: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.before = more // 2 if kernel == stride else 0
        self.behind = more - self.before
        self.pool = nn.AvgPool2d(kernel, stride, padding=kernel // 2 if kernel == 3 else 0, ceil_mode=kernel != 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), (0, 0, 0, 0, self.before, self.behind))


def conv3x3(count: int, out: int, stride: int, padding: str) -> nn.Conv2d:
    """A 3×3 convolution without bias; `padding` matters where it strides."""
    if padding == "same" and stride == 2:
        return SamePadConv2d(count, out, 3, stride, 0, bias=False)
    return nn.Conv2d(count, out, 3, stride, 1, bias=False)


class PreActBlock(nn.Module):
    """z ↦ r(h) + s, h = act(bn(z)), r = conv3-bn-act-conv3, or with `bottleneck` conv1-bn-act-conv3-bn-act-conv1.

    s is z where the shape stays; else a convolution of h (`activated`) or of z (`raw`, `raw3x3`), or a pool (`pool`,
    `pool3x3`) of z, of h where the image's size stays. `projection` is `activated`, and a convolution everywhere.
    """

    def __init__(
        self,
        count: int,
        width: Count,
        stride: int,
        act: ActivationFactory,
        bottleneck: bool,
        shortcut: str,
        padding: str,
    ) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        self.bn1, self.act1 = nn.BatchNorm2d(count), act()
        if bottleneck:
            self.residual = sequential(
                conv1=nn.Conv2d(count, width, 1, bias=False),
                bn2=nn.BatchNorm2d(width),
                act2=act(),
                conv2=conv3x3(width, width, stride, padding),
                bn3=nn.BatchNorm2d(width),
                act3=act(),
                conv3=nn.Conv2d(width, out, 1, bias=False),
            )
        else:
            self.residual = sequential(
                conv1=conv3x3(count, width, stride, padding),
                bn2=nn.BatchNorm2d(width),
                act2=act(),
                conv2=conv3x3(width, out, 1, padding),
            )
        pooled = shortcut in ("pool", "pool3x3")
        self.raw = stride > 1 if pooled else shortcut in ("raw", "raw3x3")
        self.shortcut: nn.Module | None = None
        if stride == 1 and count == out and shortcut != "projection":
            return
        if pooled:
            self.shortcut = PoolShortcut(out - count, stride, 3 if shortcut == "pool3x3" else stride)
        elif shortcut == "raw3x3":
            self.shortcut = conv3x3(count, out, stride, padding)
        else:
            self.shortcut = nn.Conv2d(count, out, 1, stride, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        h = self.act1(self.bn1(z))
        skip = z if self.shortcut is None else self.shortcut(z if self.raw else h)
        return self.residual(h) + skip


class PreActResNet(Network):
    """PreActResNet (He et al. 2016b, ECCV, arXiv 1603.05027): stages conv1 | a block each | bn, act, average pool.

    From 8×8 pixels up. Weights start as torch's layers do, as in pytorch-cifar and locuslab's code. A large stem has a
    stage of bn, act and pool of its own.

    Args:
        blocks: blocks in each of four groups; every group after the first halves the image and doubles the width of 64.
        bottleneck: blocks of three convolutions that leave four times their width.
        shortcut: what a 1×1 convolution is fed where the shape changes: `activated` (the paper; robust_overfitting) or
            `raw` (fast_adversarial); `raw3x3` is DeepMind's 3×3 convolution. The first two have the same parameters and
            are different functions: with published weights the choice has to be theirs.
        padding: of strided 3×3 convolutions, `symmetric` or `same` (DeepMind).
        final_norm: bn and act before the pool; the first release of fast_adversarial has neither.
        stem: `small` (3×3, image size kept), `large` (7×7 and pool, a quarter of it), `auto`: large above 64 pixels.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        blocks: Sequence[Count],
        bottleneck: bool = False,
        shortcut: str = "activated",
        padding: str = "symmetric",
        final_norm: bool = True,
        stem: str = "auto",
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        refuse_unknown("model.shortcut", shortcut, PREACT_SHORTCUTS)
        refuse_unknown("model.padding", padding, PADDINGS)
        require_side(shape, 8, "preactresnet")
        act, count = activation_factory(activation), 64
        stages: dict[str, nn.Module] = {}
        if has_large_stem(stem, shape):
            stages["conv1"] = nn.Conv2d(shape[0], count, 7, 2, 3, bias=False)
            stages["stem"] = sequential(bn=nn.BatchNorm2d(count), act=act(), pool=nn.MaxPool2d(3, 2, 1))
        else:
            stages["conv1"] = nn.Conv2d(shape[0], count, 3, 1, 1, bias=False)
        for group, number in enumerate(blocks):
            width = 64 * 2**group
            for i in range(number):
                stride = 2 if group > 0 and i == 0 else 1
                block = PreActBlock(count, width, stride, act, bottleneck, shortcut, padding)
                stages[f"layer{group + 1}_{i}"] = block
                count = 4 * width if bottleneck else width
        before = {"bn": nn.BatchNorm2d(count), "act": act()} if final_norm else {}
        stages["pool"] = sequential(**before, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        super().__init__(sequential(**stages), make_head(head, count, classes, head_scale), mean, std)
        self.padding = padding


class WRN(Network):
    """WRN-d-w (Zagoruyko & Komodakis 2016, arXiv 1605.07146): stages conv1 | a block each | bn, act, average pool.

    Three groups of n blocks with 16w, 32w and 64w channels behind a 3×3 convolution of 16; the second and third halve
    the image. No dropout. From 8×8 pixels up. Weights start as in yaodongyu/TRADES: N(0, 2/(k²·out)).

    Args:
        depth, width: d and w. d = 6n + 4 counts the convolutions of the shortcuts, as the paper does; 6n + 2 does not,
            as Madry's w32-10 and those after it: depths 34 and 32 are the same network.
        padding: of strided 3×3 convolutions, `symmetric` or `same` (DeepMind's, with `activation: silu`: Gowal et al.
            2020, arXiv 2010.03593, and what followed).
        norm_momentum: of BatchNorm's running statistics; theirs is 0.01.
        stem_width: channels of the first convolution.
        shortcut: where the shape changes, `activated` (1×1 convolution), or without parameters `pool` (Madry et al.
            2018, whose networks have `activation: leaky_relu` and `standardise: image`) or `pool3x3` (IAAT).
            `projection` is `activated` in the first block of every group, whether the shape changes or not (LLR).
        norm_affine: whether BatchNorm has a scale and a shift.
        head: `linear`, `hypersphere`, or `convolution`: 1×1 convolution and BatchNorm before the average pool (IAAT);
            the features are the logits then.
        standardise: the input by the data set's numbers, or `image`: each image by its own.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        depth: Count,
        width: Count,
        padding: str = "symmetric",
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
        norm_momentum: SomeShare = 0.1,
        stem_width: Count = 16,
        shortcut: str = "activated",
        norm_affine: bool = True,
        standardise: str = "dataset",
    ) -> None:
        refuse_unknown("model.shortcut", shortcut, WRN_SHORTCUTS)
        refuse_unknown("model.padding", padding, PADDINGS)
        require_side(shape, 8, "wrn")
        number = (depth - 2) // 6
        if number < 1 or depth % 6 not in (2, 4):
            below = max(1, number) * 6 + 4
            raise ConfigError("model.depth", depth, "is not 6n + 4", f"use {below} or {below + 6}")
        act, count = activation_factory(activation), stem_width
        stages: dict[str, nn.Module] = {"conv1": nn.Conv2d(shape[0], count, 3, 1, 1, bias=False)}
        for group in range(3):
            out = 16 * width * 2**group
            for i in range(number):
                stride = 2 if group > 0 and i == 0 else 1
                first = shortcut if i == 0 else "activated"
                stages[f"block{group + 1}_{i}"] = PreActBlock(count, out, stride, act, False, first, padding)
                count = out
        last: dict[str, nn.Module] = {"bn": nn.BatchNorm2d(count), "act": act()}
        if not norm_affine:
            remove_affine(sequential(**stages, **last))
        final: nn.Module = nn.Identity()
        if head == "convolution":
            last |= {"conv": nn.Conv2d(count, classes, 1, bias=False), "conv_bn": nn.BatchNorm2d(classes)}
        else:
            final = make_head(head, count, classes, head_scale)
        stages["pool"] = sequential(**last, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        super().__init__(sequential(**stages), final, mean, std, standardise)
        self.padding = padding
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
        if isinstance(self.head, nn.Linear) and self.head.bias is not None:
            nn.init.zeros_(self.head.bias)


def remove_affine(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine = False
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
