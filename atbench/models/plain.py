"""Plain convolutional networks: MNIST nets of TRADES, fast_adversarial and SSDRL, one of ours, LeNets, two of CIFAR-10.

All cut before their activations: stage 0 is the first convolution, the last stage the last activation. The linear
layers of most fix the size of the image, which is the data set's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from atbench.config.ranges import AnyCount, Count, Positive
from atbench.models.activations import activation_factory
from atbench.models.heads import make_head
from atbench.models.network import Network, Shape, require_side, sequential
from atbench.models.preact import SamePadConv2d


class TradesMnist(Network):
    """SmallCNN of yaodongyu/TRADES (models/small_cnn.py): four valid 3×3 convolutions (32, 32, 64, 64), a pool after
    every second, two layers of 200 and dropout ½ between them.

    From 16×16 pixels up. Convolutions start at He's normal, and the last layer at 0: the first gradient to an image is
    0, which a random start of the attack survives.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 16, "mnist_trades")
        act = activation_factory(activation)
        channels, *sides = shape
        height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
        stages = sequential(
            conv1=nn.Conv2d(channels, 32, 3),
            conv2=sequential(act=act(), conv=nn.Conv2d(32, 32, 3)),
            conv3=sequential(act=act(), pool=nn.MaxPool2d(2), conv=nn.Conv2d(32, 64, 3)),
            conv4=sequential(act=act(), conv=nn.Conv2d(64, 64, 3)),
            fc1=sequential(act=act(), pool=nn.MaxPool2d(2), flat=nn.Flatten(), fc=nn.Linear(64 * height * width, 200)),
            fc2=sequential(act=act(), drop=nn.Dropout(0.5), fc=nn.Linear(200, 200)),
            out=act(),
        )
        super().__init__(stages, make_head(head, 200, classes, head_scale), mean, std)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear) and self.head.bias is not None:  # a direction on the sphere cannot be 0
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)


class FastMnist(Network):
    """The network of locuslab/fast_adversarial (MNIST/mnist_net.py), Wong & Kolter's small one: two 4×4 convolutions of
    stride 2 (16, 32) and a layer of 100. From 4×4 pixels up.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 4, "mnist_fast")
        act = activation_factory(activation)
        channels, height, width = shape
        stages = sequential(
            conv1=nn.Conv2d(channels, 16, 4, 2, 1),
            conv2=sequential(act=act(), conv=nn.Conv2d(16, 32, 4, 2, 1)),
            fc1=sequential(act=act(), flat=nn.Flatten(), fc=nn.Linear(32 * (height // 4) * (width // 4), 100)),
            out=act(),
        )
        super().__init__(stages, make_head(head, 100, classes, head_scale), mean, std)


class SsdrlMnist(Network):
    """The network of pfnet-research/ssdrl (classifiers/mnistcnn.py): three 4×4 convolutions of stride 2 (64, 128, 256)
    and the mean over pixels; Glorot-uniform weights, biases 0. From 8×8 pixels up, of any size.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "elu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 8, "mnist_ssdrl")
        act = activation_factory(activation)
        stages = sequential(
            conv1=nn.Conv2d(shape[0], 64, 4, 2, 1),
            conv2=sequential(act=act(), conv=nn.Conv2d(64, 128, 4, 2, 1)),
            conv3=sequential(act=act(), conv=nn.Conv2d(128, 256, 4, 2, 1)),
            out=sequential(act=act(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()),
        )
        super().__init__(stages, make_head(head, 256, classes, head_scale), mean, std)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class Strided(Network):
    """Two 4×4 convolutions of stride 2 (16, 32) with BatchNorm and a layer of 100: FastMnist's form, which adversarial
    training without BatchNorm left at chance on small images. From 4×4 pixels up.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 4, "strided")
        act = activation_factory(activation)
        channels, height, width = shape
        stages = sequential(
            conv1=nn.Conv2d(channels, 16, 4, 2, 1, bias=False),
            conv2=sequential(bn=nn.BatchNorm2d(16), act=act(), conv=nn.Conv2d(16, 32, 4, 2, 1, bias=False)),
            fc1=sequential(
                bn=nn.BatchNorm2d(32),
                act=act(),
                flat=nn.Flatten(),
                fc=nn.Linear(32 * (height // 4) * (width // 4), 100),
            ),
            out=act(),
        )
        super().__init__(stages, make_head(head, 100, classes, head_scale), mean, std)


class LeNet(Network):
    """Two convolutions, each with activation and max pool, and hidden linear layers.

    Args:
        channels: of the two convolutions.
        padding: of each; 2 keeps the size.
        pools: side and stride of the max pool behind each.
        hidden: widths of the linear layers before the head.
        kernel: side of the convolutions.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels: Sequence[Count] = (6, 16),
        padding: Sequence[AnyCount] = (2, 0),
        pools: Sequence[Count] = (2, 2),
        hidden: Sequence[Count] = (120, 84),
        kernel: Count = 5,
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        # The smallest side that leaves a pixel after both pools, found backwards.
        second = pools[1] - 2 * padding[1] + kernel - 1
        require_side(shape, max(4, pools[0] * second - 2 * padding[0] + kernel - 1), "lenet")
        act = activation_factory(activation)
        count, *sides = shape
        for pad, pool in zip(padding, pools, strict=True):
            sides = [(side + 2 * pad - kernel + 1) // pool for side in sides]
        stages: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(count, channels[0], kernel, padding=padding[0]),
            "conv2": sequential(
                act=act(),
                pool=nn.MaxPool2d(pools[0]),
                conv=nn.Conv2d(channels[0], channels[1], kernel, padding=padding[1]),
            ),
        }
        count = channels[1] * sides[0] * sides[1]
        before: dict[str, nn.Module] = {"act": act(), "pool": nn.MaxPool2d(pools[1]), "flat": nn.Flatten()}
        for number, width in enumerate(hidden, start=1):
            stages[f"fc{number}"] = sequential(**before, fc=nn.Linear(count, width))
            count, before = width, {"act": act()}
        stages["out"] = sequential(**before)
        super().__init__(sequential(**stages), make_head(head, count, classes, head_scale), mean, std)


class ConvNet8(Network):
    """The 8-layer ConvNet of Wang et al. 2019 (arXiv 2112.08304): six 3×3 convolutions with BatchNorm (64, 64, 128,
    128, 196, 196), a pool after every second, a layer of 256. From 8×8 pixels up.

    Source: YisenWang/dynamic_adv_training, models.py, where its CIFAR-10 branch is commented out for a Wide ResNet.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 8, "convnet8")
        act = activation_factory(activation)
        channels, height, width = shape
        stages: dict[str, nn.Module] = {"conv1": nn.Conv2d(channels, 64, 3, padding=1)}
        count = 64
        for number, out in enumerate((64, 128, 128, 196, 196), start=2):
            before = {"bn": nn.BatchNorm2d(count), "act": act()}
            if number % 2:
                before["pool"] = nn.MaxPool2d(2)
            stages[f"conv{number}"] = sequential(**before, conv=nn.Conv2d(count, out, 3, padding=1))
            count = out
        stages["fc1"] = sequential(
            bn=nn.BatchNorm2d(count),
            act=act(),
            pool=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(count * (height // 8) * (width // 8), 256),
        )
        stages["out"] = sequential(bn=nn.BatchNorm1d(256), act=act())
        super().__init__(sequential(**stages), make_head(head, 256, classes, head_scale), mean, std)


class ConvNet9(Network):
    """The network of ATDA on CIFAR-10 (Song et al. 2019): eight convolutions (three of 96, five of 192 channels, the
    last one 1×1) with GroupNorm of 32 groups, the third and the sixth halve the image, dropout ½ behind both.

    From 4×4 pixels up. Convolutions pad as TensorFlow's, and start at Glorot's uniform, their biases at 0. Source:
    JHL-HUST/ATDA, cifar10.py: modelZ, whose ninth convolution is the head here, behind the mean over the image, which
    commutes with it.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str = "elu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        require_side(shape, 4, "convnet9")
        act = activation_factory(activation)
        count = 96
        stages: dict[str, nn.Module] = {"conv1": nn.Conv2d(shape[0], count, 3, padding=1)}
        for number, out in enumerate((96, 96, 192, 192, 192, 192, 192), start=2):
            before = {"norm": nn.GroupNorm(32, count), "act": act()}
            if number in (4, 7):
                before["drop"] = nn.Dropout(0.5)
            if number in (3, 6):
                conv: nn.Conv2d = SamePadConv2d(count, out, 3, stride=2)
            else:
                conv = nn.Conv2d(count, out, 1) if number == 8 else nn.Conv2d(count, out, 3, padding=1)
            stages[f"conv{number}"], count = sequential(**before, conv=conv), out
        stages["out"] = sequential(
            norm=nn.GroupNorm(32, count), act=act(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()
        )
        super().__init__(sequential(**stages), make_head(head, count, classes, head_scale), mean, std)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
