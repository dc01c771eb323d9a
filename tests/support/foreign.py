"""Networks of others in small: their names for their tensors and their forward, written from the public layouts.

With them a translation of names is checked by what it computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(count: int, out: int, size: int = 3, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(count, out, size, stride, size // 2 if padding is None else padding, bias=False)


def pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def modules(owner: nn.Module, **parts: nn.Module) -> None:
    """Parts under names that are no identifiers of ours to choose."""
    for name, part in parts.items():
        owner.add_module(name, part)


class TradesBlock(nn.Module):
    """yaodongyu/TRADES models/wideresnet.py: BasicBlock."""

    def __init__(self, count: int, out: int, stride: int) -> None:
        super().__init__()
        modules(self, bn1=nn.BatchNorm2d(count), conv1=conv(count, out, 3, stride))
        modules(self, bn2=nn.BatchNorm2d(out), conv2=conv(out, out))
        self.convShortcut = conv(count, out, 1, stride) if count != out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        kept = x if self.convShortcut is None else self.convShortcut(h)
        return kept + self.conv2(self.bn2(self.conv1(h)).relu())


class TradesGroup(nn.Module):
    def __init__(self, count: int, out: int, stride: int, number: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(TradesBlock(count if i == 0 else out, out, stride if i == 0 else 1) for i in range(number))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class TradesWRN(nn.Module):
    """Its WideResNet, with the `sub_block1` that it never calls; RobustBench's is the same, with or without that."""

    def __init__(self, depth: int = 16, width: int = 1, classes: int = 5) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = conv(3, 16)
        self.block1 = TradesGroup(widths[0], widths[1], 1, n)
        self.sub_block1 = TradesGroup(widths[0], widths[1], 1, n)
        self.block2 = TradesGroup(widths[1], widths[2], 2, n)
        self.block3 = TradesGroup(widths[2], widths[3], 2, n)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block3(self.block2(self.block1(self.conv1(x))))
        out: Tensor = self.fc(pooled(self.bn1(h).relu()))
        return out


def late(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """DeepMind's 3×3 convolutions: padded around, or below and to the right where they stride."""
    out: Tensor = layer(F.pad(x, (0, 1, 0, 1) if layer.stride == (2, 2) else (1, 1, 1, 1)))
    return out


class DeepMindBlock(nn.Module):
    """RobustBench dm_wide_resnet.py: _Block."""

    def __init__(self, count: int, out: int, stride: int) -> None:
        super().__init__()
        modules(self, batchnorm_0=nn.BatchNorm2d(count), conv_0=conv(count, out, 3, stride, 0))
        modules(self, batchnorm_1=nn.BatchNorm2d(out), conv_1=conv(out, out))
        self.shortcut = conv(count, out, 1, stride) if count != out else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.batchnorm_0(x))
        kept = x if self.shortcut is None else self.shortcut(h)
        return kept + self.conv_1(F.silu(self.batchnorm_1(late(self.conv_0, h))))


class DeepMindGroup(nn.Module):
    def __init__(self, count: int, out: int, stride: int, number: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(DeepMindBlock(count if i == 0 else out, out, stride if i == 0 else 1) for i in range(number))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class DeepMindWRN(nn.Module):
    """Its DMWideResNet, which normalises and uses Swish."""

    def __init__(self, depth: int = 16, width: int = 1, classes: int = 5) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
        self.init_conv = conv(3, 16)
        self.layer = nn.Sequential(*(DeepMindGroup(widths[g], widths[g + 1], 1 if g == 0 else 2, n) for g in range(3)))
        self.batchnorm, self.logits = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.init_conv((x - self.mean) / self.std))
        out: Tensor = self.logits(pooled(F.silu(self.batchnorm(h))))
        return out


class DeepMindPreActBlock(nn.Module):
    """The same file's _PreActBlock: a 3×3 shortcut of what is not yet activated."""

    def __init__(self, count: int, out: int, stride: int) -> None:
        super().__init__()
        modules(self, batchnorm_0=nn.BatchNorm2d(count), conv_2d_1=conv(count, out, 3, stride, 0))
        modules(self, batchnorm_1=nn.BatchNorm2d(out), conv_2d_2=conv(out, out))
        self.shortcut = conv(count, out, 3, stride, 0) if stride != 1 or count != out else None

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.shortcut is None else late(self.shortcut, x)
        h = late(self.conv_2d_1, self.batchnorm_0(x).relu())
        return kept + self.conv_2d_2(self.batchnorm_1(h).relu())


class DeepMindPreAct(nn.Module):
    """Its DMPreActResNet, with two groups."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
        self.conv_2d = conv(3, 64)
        self.layer_0 = nn.Sequential(DeepMindPreActBlock(64, 64, 1), DeepMindPreActBlock(64, 64, 1))
        self.layer_1 = nn.Sequential(DeepMindPreActBlock(64, 128, 2))
        self.batchnorm, self.logits = nn.BatchNorm2d(128), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_1(self.layer_0(self.conv_2d((x - self.mean) / self.std)))
        out: Tensor = self.logits(pooled(self.batchnorm(h).relu()))
        return out


class PreActBlock(nn.Module):
    """pytorch-cifar models/preact_resnet.py; in locuslab/fast_adversarial the shortcut is of the input (`raw`)."""

    def __init__(self, count: int, width: int, stride: int, bottleneck: bool, raw: bool) -> None:
        super().__init__()
        self.bottleneck, self.raw = bottleneck, raw
        out = 4 * width if bottleneck else width
        self.bn1, self.bn2 = nn.BatchNorm2d(count), nn.BatchNorm2d(width)
        if bottleneck:
            modules(self, conv1=conv(count, width, 1), conv2=conv(width, width, 3, stride))
            modules(self, bn3=nn.BatchNorm2d(width), conv3=conv(width, out, 1))
        else:
            modules(self, conv1=conv(count, width, 3, stride), conv2=conv(width, out))
        if stride != 1 or count != out:
            self.shortcut = nn.Sequential(conv(count, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        kept = self.shortcut(x if self.raw else h) if hasattr(self, "shortcut") else x
        out = self.conv2(self.bn2(self.conv1(h)).relu())
        return kept + (self.conv3(self.bn3(out).relu()) if self.bottleneck else out)


class PreAct(nn.Module):
    """Its PreActResNet, with two groups. RobustBench's Wong2020Fast has no `bn`."""

    def __init__(self, bottleneck: bool = False, raw: bool = False, final: bool = True, classes: int = 5) -> None:
        super().__init__()
        wider = 4 if bottleneck else 1
        self.conv1 = conv(3, 64)
        self.layer1 = nn.Sequential(
            PreActBlock(64, 64, 1, bottleneck, raw), PreActBlock(64 * wider, 64, 1, bottleneck, raw)
        )
        self.layer2 = nn.Sequential(PreActBlock(64 * wider, 128, 2, bottleneck, raw))
        if final:
            self.bn = nn.BatchNorm2d(128 * wider)
        self.linear = nn.Linear(128 * wider, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(self.conv1(x)))
        out: Tensor = self.linear(pooled(self.bn(h).relu() if hasattr(self, "bn") else h))
        return out


class CifarBlock(nn.Module):
    """pytorch-cifar models/resnet.py: BasicBlock, its shortcut an empty chain where the shape stays."""

    def __init__(self, count: int, out: int, stride: int) -> None:
        super().__init__()
        modules(self, conv1=conv(count, out, 3, stride), bn1=nn.BatchNorm2d(out))
        modules(self, conv2=conv(out, out), bn2=nn.BatchNorm2d(out))
        changed = stride != 1 or count != out
        self.shortcut = nn.Sequential(*([conv(count, out, 1, stride), nn.BatchNorm2d(out)] if changed else []))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x)).relu()
        out: Tensor = (self.bn2(self.conv2(h)) + self.shortcut(x)).relu()
        return out


class CifarResNet(nn.Module):
    """Its ResNet, with two groups."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(CifarBlock(64, 64, 1), CifarBlock(64, 64, 1))
        self.layer2 = nn.Sequential(CifarBlock(64, 128, 2))
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        out: Tensor = self.linear(pooled(h))
        return out


class TradesSmallCNN(nn.Module):
    """yaodongyu/TRADES models/small_cnn.py for 28×28."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.feature_extractor, self.classifier = nn.Sequential(), nn.Sequential()
        act, pool = nn.ReLU(), nn.MaxPool2d(2)
        layers = [nn.Conv2d(1, 32, 3), act, nn.Conv2d(32, 32, 3), act, pool]
        layers += [nn.Conv2d(32, 64, 3), act, nn.Conv2d(64, 64, 3), act, pool]
        names = ["conv1", "relu1", "conv2", "relu2", "maxpool1", "conv3", "relu3", "conv4", "relu4", "maxpool2"]
        modules(self.feature_extractor, **dict(zip(names, layers, strict=True)))
        modules(self.classifier, fc1=nn.Linear(1024, 200), relu1=act, drop=nn.Dropout(0.5))
        modules(self.classifier, fc2=nn.Linear(200, 200), relu2=act, fc3=nn.Linear(200, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.feature_extractor(x).flatten(1))
        return out


def fast_mnist(classes: int = 5) -> nn.Module:
    """locuslab/fast_adversarial MNIST/mnist_net.py."""
    act = nn.ReLU()
    first, second = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
    return nn.Sequential(first, act, second, act, nn.Flatten(), nn.Linear(1568, 100), act, nn.Linear(100, classes))
