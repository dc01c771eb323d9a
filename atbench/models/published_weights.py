"""Loading of published weights: state-dict keys of others renamed to ours.

Names are translated by rule, layout by layout; a layout is recognised by a key that no other has. Nothing is loaded
unless every tensor of the network is there, with its shape, and nothing is left over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atbench.errors import DataError
from atbench.models.network import Network
from atbench.models.plain import FastMnist, TradesMnist
from atbench.models.preact import WRN, PreActResNet
from atbench.models.residual import ResNet

# Keys under which a checkpoint keeps the weights, the best first.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
# What DataParallel, torch.compile, and modules that hold the network beside a normalisation put before a name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_MEAN = re.compile(r"(?:normalize\.)?(mean|mu|std|sigma)")
_SHOWN = 3

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """The names of a published code for the tensors of one of our networks.

    name, network: whose, and which network's.
    marker: a key that only this layout has.
    rules: patterns of the start of a key, and what to put there; the first that fits counts.
    dropped: a pattern of keys that take no part in their forward.
    padding: how strided convolutions pad in their code (`model.padding`), where that is an option.
    """

    name: str
    network: type[Network]
    marker: str
    rules: tuple[Rule, ...]
    dropped: str | None = None
    padding: str | None = None


# Of a pre-activation block the first BatchNorm and the shortcut are its own, and the rest lies under `residual`.
_DEEPMIND = {
    "batchnorm_0": "bn1",
    "conv_0": "residual.conv1",
    "conv_2d_1": "residual.conv1",
    "batchnorm_1": "residual.bn2",
    "conv_1": "residual.conv2",
    "conv_2d_2": "residual.conv2",
    "shortcut": "shortcut",
}


def _deepmind(prefix: str) -> Callable[[re.Match[str]], str]:
    def ours(match: re.Match[str]) -> str:
        group, i, part = match.groups()
        return f"stages.{prefix}{int(group) + 1}_{i}.{_DEEPMIND[part]}."  # they count groups from 0

    return ours


LAYOUTS = (
    Layout(
        "yaodongyu/TRADES and RobustBench WideResNet",
        WRN,
        "block1.layer.0.conv1.weight",
        (
            (r"block(\d)\.layer\.(\d+)\.convShortcut\.", r"stages.block\1_\2.shortcut."),
            (r"block(\d)\.layer\.(\d+)\.bn1\.", r"stages.block\1_\2.bn1."),
            (r"block(\d)\.layer\.(\d+)\.(\w+)\.", r"stages.block\1_\2.residual.\3."),
            (r"conv1\.", "stages.conv1."),
            (r"bn1\.", "stages.pool.bn."),
            (r"fc\.", "head."),
        ),
        dropped=r"sub_block1\.",  # a second first group that TRADES makes and never calls
        padding="symmetric",
    ),
    Layout(
        "DeepMind and RobustBench DMWideResNet",
        WRN,
        "init_conv.weight",
        (
            (r"layer\.(\d)\.block\.(\d+)\.(\w+)\.", _deepmind("block")),
            (r"init_conv\.", "stages.conv1."),
            (r"batchnorm\.", "stages.pool.bn."),
            (r"logits\.", "head."),
        ),
        padding="same",
    ),
    Layout(
        "pytorch-cifar, locuslab and RobustBench PreActResNet",
        PreActResNet,
        "layer1.0.conv1.weight",
        (
            (r"layer(\d)\.(\d+)\.shortcut\.0\.", r"stages.layer\1_\2.shortcut."),
            (r"layer(\d)\.(\d+)\.bn1\.", r"stages.layer\1_\2.bn1."),
            (r"layer(\d)\.(\d+)\.(\w+)\.", r"stages.layer\1_\2.residual.\3."),
            (r"conv1\.", "stages.conv1."),
            (r"bn\.", "stages.pool.bn."),
            (r"linear\.", "head."),
        ),
        padding="symmetric",
    ),
    Layout(
        "DeepMind and RobustBench DMPreActResNet",
        PreActResNet,
        "conv_2d.weight",
        (
            (r"layer_(\d)\.(\d+)\.(\w+)\.", _deepmind("layer")),
            (r"conv_2d\.", "stages.conv1."),
            (r"batchnorm\.", "stages.pool.bn."),
            (r"logits\.", "head."),
        ),
        padding="same",
    ),
    Layout(
        "torchvision, pytorch-cifar and RobustBench ResNet",
        ResNet,
        "layer1.0.conv1.weight",
        (
            (r"layer(\d)\.(\d+)\.(?:shortcut|downsample)\.0\.", r"stages.layer\1_\2.shortcut.conv."),
            (r"layer(\d)\.(\d+)\.(?:shortcut|downsample)\.1\.", r"stages.layer\1_\2.shortcut.bn."),
            (r"layer(\d)\.(\d+)\.(\w+)\.", r"stages.layer\1_\2.residual.\3."),
            (r"(conv1|bn1)\.", r"stages.\1."),
            (r"(?:fc|linear)\.", "head."),
        ),
    ),
    Layout(
        "yaodongyu/TRADES SmallCNN",
        TradesMnist,
        "feature_extractor.conv1.weight",
        (
            (r"feature_extractor\.conv1\.", "stages.conv1."),
            (r"feature_extractor\.(conv\d)\.", r"stages.\1.conv."),
            (r"classifier\.fc3\.", "head."),
            (r"classifier\.(fc\d)\.", r"stages.\1.fc."),
        ),
    ),
    Layout(
        "locuslab/fast_adversarial mnist_net",
        FastMnist,
        "0.weight",
        ((r"0\.", "stages.conv1."), (r"2\.", "stages.conv2.conv."), (r"5\.", "stages.fc1.fc."), (r"7\.", "head.")),
    ),
)


def load_published(network: Network, state: Mapping[str, Any]) -> None:
    """Load `state`, a state dict or a checkpoint that holds one, into `network`, or raise DataError.

    A normalisation in `state` (`mean`, `std`, `mu`, `sigma`) replaces the network's; where there is none it was done
    elsewhere or not at all, and the network has to be built with what the authors used.
    """
    published = unwrap(state)[-1]
    ours = network.state_dict()
    tensors = translate(network, published)
    for key in ("mean", "std"):
        tensors[key] = tensors[key].reshape(ours[key].shape) if key in tensors else ours[key]
    load_exactly(network, tensors | batch_counters(ours, tensors))


def load_named(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load `state`, a state dict or a checkpoint that holds one, into any module under the module's own names, or
    raise DataError.

    A wrapper's prefix is taken off where the module's names have none: of the ways to read the names, the one that
    agrees with most of the module's counts.
    """
    ours = module.state_dict()
    tensors = max(unwrap(state), key=lambda candidate: len(candidate.keys() & ours.keys()))
    load_exactly(module, tensors | batch_counters(ours, tensors))


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that have the module's names: all of them, nothing else, each of its shape. Raises DataError."""
    ours, name = module.state_dict(), type(module).__name__
    missing, extra = sorted(ours.keys() - tensors.keys()), sorted(tensors.keys() - ours.keys())
    if missing or extra:
        why = "; ".join(
            f"{what}: {first_names(keys)}" for what, keys in (("missing", missing), ("unexpected", extra)) if keys
        )
        raise DataError("weights", name, why, "build the network that they were made for")
    for key, value in tensors.items():
        if value.shape != ours[key].shape:
            why = f"{key} is {tuple(value.shape)} where the network has {tuple(ours[key].shape)}"
            raise DataError("weights", name, why, "build the network that they were made for")
    module.load_state_dict(tensors)


def batch_counters(ours: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm's counters, which checkpoints of before torch 0.4.1 lack, and which change nothing in a function."""
    return {key: ours[key] for key in ours if key.endswith("num_batches_tracked") and key not in tensors}


def unwrap(state: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The tensors of a checkpoint by name: as stored first, then with one wrapper's prefix after another removed."""
    candidates = [find_state_dict(state)]
    while (prefix := common_prefix(candidates[-1])) is not None:
        candidates.append({key.removeprefix(prefix): value for key, value in candidates[-1].items()})
    return candidates


def find_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, as they are called there."""
    while not all(isinstance(value, Tensor) for value in state.values()):
        key = next((key for key in STATE_DICT_KEYS if isinstance(state.get(key), Mapping)), None)
        if key is None:
            keys = first_names(sorted(str(key) for key in state))
            raise DataError("weights", keys, "hold no state dict", f"put one under {', '.join(STATE_DICT_KEYS)}")
        state = state[key]
    return dict(state)


def common_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """A wrapper's prefix that all names have, those of a normalisation beside the network aside."""
    names = [key for key in tensors if not _MEAN.fullmatch(key)]
    return next((prefix for prefix in PREFIXES if names and all(key.startswith(prefix) for key in names)), None)


def translate(network: Network, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; keys that match no rule are kept."""
    known = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
    ours = {known[match[1]]: published[match[0]] for match in map(_MEAN.fullmatch, published) if match is not None}
    rest = {key: value for key, value in published.items() if not _MEAN.fullmatch(key)}
    if (names := network.published) is not None and not any(key.startswith("stages.") for key in rest):
        auxiliary = re.compile(r"(?:AuxLogits|aux1|aux2)\.")
        return ours | {names.get(key, key): value for key, value in rest.items() if not auxiliary.match(key)}
    layout = next((each for each in LAYOUTS if isinstance(network, each.network) and each.marker in rest), None)
    if layout is None:
        return ours | rest
    padding = getattr(network, "padding", None)
    if layout.padding not in (None, padding):
        why = f"strided convolutions of {layout.name} pad otherwise"
        raise DataError("weights", f"model.padding={padding}", why, f"build with model.padding={layout.padding}")
    for key, value in rest.items():
        if layout.dropped is None or not re.match(layout.dropped, key):
            ours[rename_key(key, layout.rules)] = value
    return ours


def rename_key(key: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return name
    return key


def first_names(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
