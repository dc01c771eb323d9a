"""The four MNIST networks of ensemble adversarial training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atbench.config.ranges import AnyCount, BelowOne, Count, Positive
from atbench.errors import ConfigError
from atbench.models.activations import activation_factory
from atbench.models.heads import make_head
from atbench.models.network import Network, Shape, require_side, sequential

INITS = ("glorot_uniform", "he_normal")


class EatMnist(Network):
    """Convolutions and hidden layers with dropout: A, B, C and D of ftramer/ensemble-adv-training (mnist.py).

    The head's kernel begins Glorot-uniform and biases at 0, as Keras has them.

    Args:
        convs: (channels, kernel, stride, padding) of each convolution; kernel 0 is the whole image, which makes it the
            first layer of an MLP.
        hidden: widths of the linear layers between convolutions and head.
        drop_input: dropout of pixels, before they are normalised.
        drop_features: dropout of what the convolutions give.
        drop_hidden: dropout behind every hidden layer.
        init: how the other kernels begin, `glorot_uniform` or `he_normal`.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        convs: Sequence[Sequence[AnyCount]] = ((64, 5, 1, 0), (64, 5, 1, 0)),
        hidden: Sequence[Count] = (128,),
        drop_input: BelowOne = 0.0,
        drop_features: BelowOne = 0.25,
        drop_hidden: BelowOne = 0.5,
        init: str = "glorot_uniform",
        activation: str = "relu",
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        if init not in INITS:
            raise ConfigError("model.init", init, "there is no such choice", f"use {' or '.join(INITS)}")
        require_side(shape, max(4, least_side(convs)), "eat_mnist")
        act = activation_factory(activation)
        count, *sides = shape
        stages: dict[str, nn.Module] = {}
        for number, (channels, kernel, stride, padding) in enumerate(convs, start=1):
            kernels = [kernel or side for side in sides]
            conv = nn.Conv2d(count, channels, (kernels[0], kernels[1]), stride, padding)
            stages[f"conv{number}"] = sequential(act=act(), conv=conv) if stages else conv
            sides = [(side + 2 * padding - k) // stride + 1 for side, k in zip(sides, kernels, strict=True)]
            count = channels
        before: dict[str, nn.Module] = {"act": act(), "drop": nn.Dropout(drop_features), "flat": nn.Flatten()}
        count *= sides[0] * sides[1]
        for number, width in enumerate(hidden, start=1):
            stages[f"fc{number}"] = sequential(**before, fc=nn.Linear(count, width))
            count, before = width, {"act": act(), "drop": nn.Dropout(drop_hidden)}
        stages["out"] = sequential(**before)
        super().__init__(sequential(**stages), make_head(head, count, classes, head_scale), mean, std)
        self.drop_input = nn.Dropout(drop_input)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                he = init == "he_normal" and module is not self.head
                (nn.init.kaiming_normal_ if he else nn.init.xavier_uniform_)(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def normalise(self, x: Tensor) -> Tensor:
        """The pixels that are left, normalised."""
        return super().normalise(self.drop_input(x))


def least_side(convs: Sequence[Sequence[int]]) -> int:
    """The least side of an image of which these convolutions leave a pixel."""
    side = 1
    for _, kernel, stride, padding in reversed(convs):
        side = (side - 1) * stride + (kernel or 1) - 2 * padding
    return side
