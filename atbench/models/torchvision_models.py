"""torchvision's classifiers and the user's own modules as Networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models
from torchvision.models import inception
from torchvision.models.googlenet import Inception as GoogleInception

from atbench.config.ranges import Positive
from atbench.errors import ConfigError, hint
from atbench.models.activations import ACTIVATION_TYPES, ActivationFactory, activation_factory
from atbench.models.dtype import Cast
from atbench.models.heads import HEADS, make_head
from atbench.models.network import Network, Shape, has_large_stem, sequential


class TorchVision(Network):
    """The classifier that torchvision calls `name`, freshly initialised, with normalisation inside.

    Its layers are torchvision's; ours are the cuts, the stem, the activations and the head. ResNets, DenseNets,
    Inception v3, ConvNeXts and ViTs have stages, stage 0 being their first convolution; anything else is one stage and
    a head, which YOPO has no use for. ConvNeXt, ViT and DenseNet hand on bare sums or concatenations, pre-activation;
    blocks of ResNets and Inception end with their activation. No activation is in place or a function; auxiliary
    classifiers (Inception, GoogLeNet) are left out. Published weights load by torchvision's names.

    Args:
        name: one of `torchvision.models.list_models(torchvision.models)`.
        stem: of ResNets and DenseNets: `small` (3×3 of stride 1, no pool), `large` (theirs), `auto`: large above 64
            pixels. The others keep theirs, and refuse images that it shrinks to nothing.
        activation: in place of theirs, null to keep them.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        stem: str = "auto",
        activation: str | None = None,
        head: str = "linear",
        head_scale: Positive = 15.0,
    ) -> None:
        known = models.list_models(module=models)
        if name not in known:
            raise ConfigError("model.name", name, "torchvision has no such classifier", hint(name, known))
        small = not has_large_stem(stem, shape)
        net = make_torchvision(name, shape, classes)
        if small:
            use_small_stem(net)
        set_input_channels(net, shape[0])
        replace_activations(net, activation_factory(activation) if activation is not None else None)
        theirs = {id(tensor): key for key, tensor in net.state_dict(keep_vars=True).items()}
        last, final = remove_head(net, classes)
        if head != HEADS[0] and not isinstance(final, nn.Linear):
            raise ConfigError("model.head", head, f"{name} does not end in a linear layer", "use model.head=linear")
        ours = make_head(head, final.in_features, classes, head_scale) if head != HEADS[0] else final
        super().__init__(sequential(**split_stages(net)), ours, mean, std)
        self.published = {
            theirs[id(tensor)]: key for key, tensor in self.state_dict(keep_vars=True).items() if id(tensor) in theirs
        }
        if isinstance(ours, nn.Linear) and ours is not final:
            self.published |= {f"{last}.{part}": f"head.{part}" for part in ours.state_dict()}
        self._check_image_size(name, shape)

    def _check_image_size(self, name: str, shape: Shape) -> None:
        """Raise ConfigError for images that a layer cannot take, by a forward pass on meta tensors."""
        state = {key: torch.empty_like(value, device="meta") for key, value in self.state_dict().items()}
        try:
            functional_call(self, state, (torch.empty((2, *shape), device="meta"),))
        except (RuntimeError, ValueError) as error:
            raise size_error(name, shape, error) from error


class Wrapped(Network):
    """A module of the user's that takes normalised images and gives logits: one stage, and nothing behind it.

    Its `features` are the logits. A module with stages to cut between is a subclass of Network instead, and is given
    `shape`, `classes`, `mean` and `std`.
    """

    def __init__(
        self, shape: Shape, classes: int, mean: Sequence[float], std: Sequence[float], module: nn.Module
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ConfigError("model.module", module, "is no torch.nn.Module", "write model.module._target_=mine.Net")
        super().__init__(sequential(module=module), nn.Identity(), mean, std)
        self._module = Cast(module)

    def continue_from(self, h: Tensor, first: int, upto: int | None = None) -> Tensor:
        """Normalised images in the type that the module takes, which need not be that of mean and deviation."""
        return self._module(h) if first == 0 else h


def size_error(name: str, shape: Shape, error: Exception) -> ConfigError:
    """ConfigError for images that torch or torchvision cannot take, with its message."""
    message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    why = f"cannot take images of {shape[1]}×{shape[2]} pixels ({message})"
    return ConfigError("model.name", name, why, "use another model or larger images")


def make_torchvision(name: str, shape: Shape, classes: int) -> nn.Module:
    """torchvision's module for this size of image, without auxiliary classifiers and functional activations."""
    kwargs: dict[str, Any] = {"num_classes": classes}
    if name == "inception_v3":
        parts = [getattr(inception, f"Inception{letter}") for letter in "ABCDE"]
        blocks = [BasicConv2d, *(partial(part, conv_block=BasicConv2d) for part in parts), None]
        kwargs |= {"aux_logits": False, "init_weights": True, "inception_blocks": blocks}
    elif name == "googlenet":
        blocks = [BasicConv2d, partial(GoogleInception, conv_block=BasicConv2d), None]
        kwargs |= {"aux_logits": False, "init_weights": True, "blocks": blocks}
    elif name.startswith("vit_"):
        patch = int(re.findall(r"\d+", name)[-1])
        if shape[1] != shape[2] or shape[1] % patch:
            fix = f"use square images whose side is a multiple of {patch}, or another model"
            raise ConfigError("model.name", name, f"cannot cut {shape[1]}×{shape[2]} pixels into {patch}×{patch}", fix)
        kwargs["image_size"] = shape[1]
    elif name == "maxvit_t":
        kwargs["input_size"] = shape[1:]
    try:
        return models.get_model(name, weights=None, **kwargs)
    except ValueError as error:
        raise size_error(name, shape, error) from error


class BasicConv2d(nn.Module):
    """Convolution, BatchNorm, ReLU: what the Inception networks are made of, with a module where theirs is a function.

    The names and ε are torchvision's.
    """

    def __init__(self, count: int, out: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(count, out, bias=False, **options)
        self.bn = nn.BatchNorm2d(out, eps=0.001)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


def use_small_stem(net: nn.Module) -> None:
    """Replace the stem of a ResNet or DenseNet by the one for small images."""
    if isinstance(net, models.ResNet):
        net.conv1, net.maxpool = nn.Conv2d(3, net.conv1.out_channels, 3, 1, 1, bias=False), nn.Identity()
    elif isinstance(net, models.DenseNet):
        first = net.features.conv0
        net.features.conv0 = nn.Conv2d(3, first.out_channels, 3, 1, 1, bias=False)
        net.features.pool0 = nn.Identity()


def set_input_channels(net: nn.Module, channels: int) -> None:
    """Make the first convolution take `channels` channels."""
    path, first = next((path, each) for path, each in net.named_modules() if isinstance(each, nn.Conv2d))
    if first.in_channels != channels:
        settings = {key: getattr(first, key) for key in ("out_channels", "kernel_size", "stride", "padding")}
        net.set_submodule(path, nn.Conv2d(channels, **settings, bias=first.bias is not None))


def replace_activations(net: nn.Module, make: ActivationFactory | None) -> None:
    """Replace the activations by `make()`, if given, and turn off in-place operation."""
    if isinstance(net, models.DenseNet):
        net.features.add_module("relu5", nn.ReLU())  # a function in theirs
    layers: list[Any] = list(net.modules())
    for layer in layers:
        if hasattr(layer, "inplace"):
            layer.inplace = False
        for name, inner in layer.named_children():
            if make is not None and isinstance(inner, ACTIVATION_TYPES):
                setattr(layer, name, make())


def remove_head(net: nn.Module, classes: int) -> tuple[str, Any]:
    """Remove the last linear layer; return its path and itself, an Identity if the network ends in something else."""
    ends = [path for path, each in net.named_modules() if isinstance(each, nn.Linear) and each.out_features == classes]
    if not ends:
        return "", nn.Identity()
    final = net.get_submodule(ends[-1])
    net.set_submodule(ends[-1], nn.Identity())
    return ends[-1], final


def split_stages(net: nn.Module) -> dict[str, nn.Module]:
    """The stages of a network without its head: its modules in the order of its forward."""
    for kind, split in SPLITS.items():
        if isinstance(net, kind):
            return split(net)
    return {"trunk": net}


def _resnet(net: Any) -> dict[str, nn.Module]:
    return {
        "conv1": net.conv1,
        "bn1": net.bn1,
        "layer1": sequential(act=net.relu, pool=net.maxpool, blocks=net.layer1),
        **{f"layer{i}": getattr(net, f"layer{i}") for i in (2, 3, 4)},
        "pool": sequential(mean=net.avgpool, flat=nn.Flatten()),
    }


def _densenet(net: Any) -> dict[str, nn.Module]:
    parts = net.features
    stages: dict[str, nn.Module] = {"conv1": parts.conv0, "bn1": parts.norm0}
    stages["block1"] = sequential(act=parts.relu0, pool=parts.pool0, blocks=parts.denseblock1)
    for i in (2, 3, 4):
        down, block = getattr(parts, f"transition{i - 1}"), getattr(parts, f"denseblock{i}")
        stages[f"block{i}"] = sequential(down=down, blocks=block)
    stages["pool"] = sequential(bn=parts.norm5, act=parts.relu5, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return stages


def _inception(net: Any) -> dict[str, nn.Module]:
    first = net.Conv2d_1a_3x3
    stem = [first.bn, first.act, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.maxpool1, net.Conv2d_3b_1x1]
    mixed = {path.lower(): module for path, module in net.named_children() if path.startswith("Mixed")}
    pool = sequential(mean=net.avgpool, drop=net.dropout, flat=nn.Flatten())
    return {"conv1": first.conv, "stem": nn.Sequential(*stem, net.Conv2d_4a_3x3, net.maxpool2), **mixed, "pool": pool}


def _convnext(net: Any) -> dict[str, nn.Module]:
    (conv, norm), first, *rest = net.features
    stages = {f"part{i}": part for i, part in enumerate(rest, start=2)}
    pool = sequential(mean=net.avgpool, out=net.classifier)
    return {"conv1": conv, "part1": sequential(norm=norm, blocks=first), **stages, "pool": pool}


class Tokens(nn.Module):
    """Patches (B, D, h, w) → tokens (B, 1 + h·w, D), the class token first, with positions added."""

    def __init__(self, token: nn.Parameter, positions: nn.Parameter, dropout: nn.Module) -> None:
        super().__init__()
        self.token, self.positions, self.dropout = token, positions, dropout

    def forward(self, patches: Tensor) -> Tensor:
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.dropout(tokens + self.positions)


class ClassToken(nn.Module):
    """The class token's features, (B, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def _vit(net: Any) -> dict[str, nn.Module]:
    encoder = net.encoder
    tokens = Tokens(net.class_token, encoder.pos_embedding, encoder.dropout)
    layers = {f"layer{i}": layer for i, layer in enumerate(encoder.layers, start=1)}
    pool = sequential(norm=encoder.ln, first=ClassToken(), out=net.heads)
    return {"conv1": net.conv_proj, "tokens": tokens, **layers, "pool": pool}


SPLITS: dict[type[nn.Module], Callable[[Any], dict[str, nn.Module]]] = {
    models.ResNet: _resnet,
    models.DenseNet: _densenet,
    models.Inception3: _inception,
    models.ConvNeXt: _convnext,
    models.VisionTransformer: _vit,
}
