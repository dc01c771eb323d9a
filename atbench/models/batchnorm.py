"""BatchNorm modes during an attack, and the restoration of a network after it.

Papers differ here and it moves results (Pang et al. 2021, "Bag of Tricks for AT"): the mode is a setting of the attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.models.folded_norm import replace_forwards, restore_forwards
from atbench.models.weight_casts import cast_weights

CAPTURED = "captured_statistics"  # attribute of a layer: batch mean and variance of the last `capture_batch_statistics`
BN_MODES: tuple[str, ...] = ("eval", "train", "batch", "fixed")


class Frozen(nn.Module):
    """A network that is not trained: always in eval mode, whatever `train()` is called on, and without parameter
    gradients.

    Gradients to its input still flow, so that it can serve as the source of an attack.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@contextmanager
def attack_mode(network: nn.Module, mode: str, freeze: bool = True) -> Iterator[None]:
    """Run a block with `network` in an attack's mode, and restore every module's own mode afterwards.

    - `eval`: the whole network in eval mode (dropout too): running statistics, none updated.
    - `train`: train mode: batch statistics, and every forward of the attack updates the running ones.
    - `batch`: train mode with the running statistics left untouched.
    - `fixed`: eval mode with the statistics stored by the last `capture_batch_statistics` block (LLR, Qin et al. 2019).

    With `freeze` no parameter takes a gradient in the block, autocast casts weights once for all of it, and in `eval`
    and `fixed` the global random state is restored and on a CPU BatchNorm is one affine map, where it can be as part of
    a convolution (`folded_norm.py`), unless the network is compiled; in `train` and `batch` dropout moves the random
    state, so that the update draws other masks than the attack.
    """
    modes = {module: module.training for module in network.modules()}
    norms = [module for module in modes if isinstance(module, _BatchNorm)]
    tracking = {norm: norm.track_running_stats for norm in norms}
    running = {norm: (norm.running_mean, norm.running_var) for norm in norms}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad] if freeze else []
    cuda = sorted({parameter.device.index or 0 for parameter in network.parameters() if parameter.is_cuda})
    compiled = any(module._compiled_call_impl is not None for module in modes)
    affine = freeze and mode in ("eval", "fixed") and not cuda and not compiled
    network.train(mode in ("train", "batch"))
    for parameter in trainable:
        parameter.requires_grad_(False)
    for norm in norms:
        if mode == "batch":
            # In train mode an untracked layer normalises by its batch and neither moves its averages nor counts it.
            norm.track_running_stats = False
        if mode == "fixed":
            norm.running_mean, norm.running_var = getattr(norm, CAPTURED)
    forwards = replace_forwards(modes, affine)
    try:
        with (
            torch.random.fork_rng(devices=cuda, enabled=freeze and mode in ("eval", "fixed")),
            cast_weights(network) if freeze else nullcontext(),
        ):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = tracking[norm]
            norm.running_mean, norm.running_var = running[norm]
        restore_forwards(forwards)
        for module, training in modes.items():
            module.training = training


@contextmanager
def capture_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Store the batch statistics of the forward pass in the block for `attack_mode(network, "fixed")`.

    No gradient flows to them.
    """

    def store(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # autocast leaves the statistics in fp32
        axes = [0, *range(2, x.ndim)]
        setattr(norm, CAPTURED, (x.mean(axes), x.var(axes, unbiased=False)))

    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(store) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
