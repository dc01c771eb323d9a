"""Anybody's checkpoint into anybody's module: every common wrapping is understood, and nothing is loaded by half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from atbench.errors import DataError
from atbench.models import CNN, Ensemble, weight_files
from atbench.models.torchvision_models import Wrapped

State = dict[str, Tensor]
FACTS = {"shape": (1, 8, 8), "classes": 3, "mean": [0.3], "std": [0.4]}


class Held(nn.Module):
    """A module whose own names begin as a wrapper's do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def filled(module: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    return module.eval()


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], dict[str, Any]]] = {
    "plain": dict,
    "parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "held": prefixed("model."),
    "lightning": lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3},
    "model": lambda state: {"model": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": prefixed("module.")(state), "acc": 91.0},
    "without its own prefix": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("make", [Held, lambda: Held().net, lambda: Ensemble([Held(), Held()])])
@pytest.mark.parametrize("how", WRAPPINGS)
def test_wrappings_are_seen_through(how: str, make: Callable[[], nn.Module], tmp_path: Path) -> None:
    source, network = filled(make(), 1), filled(make(), 2)
    torch.save(WRAPPINGS[how](source.state_dict()), tmp_path / "x.pt")
    weight_files.load_weights(network, weight_files.read_weights(tmp_path / "x.pt"))
    named = dict(network.named_parameters())
    assert all(torch.equal(value, named[key]) for key, value in source.named_parameters())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(network(x), source(x))


def test_safetensors_and_torch_agree(tmp_path: Path) -> None:
    source, network = filled(Held(), 1), filled(Held(), 2)
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    weight_files.load_weights(network, weight_files.read_weights(tmp_path / "x.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), source.parameters(), strict=True))


def test_a_wrapped_module_takes_its_own_weights_or_those_of_both() -> None:
    def wrapped() -> Wrapped:
        return Wrapped(**FACTS, module=Held())  # type: ignore[arg-type]

    source, x = filled(wrapped(), 1), torch.rand(2, 1, 8, 8)
    both, own = filled(wrapped(), 2), filled(wrapped(), 3)
    weight_files.load_weights(both, {"model": source.state_dict()})
    assert torch.equal(both(x), source(x))
    kept = own.mean.clone()
    weight_files.load_weights(own, source.stages.module.state_dict())
    assert torch.equal(own.mean, kept), "its own normalisation is the wrapper's"
    assert torch.equal(own.stages(x), source.stages(x))


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def broken(state: State) -> State:
    return {**state, "net.3.weight": state["net.3.weight"].index_fill(0, torch.tensor([1]), torch.nan)}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("net.3.bias"), r"Held — missing: net\.3\.bias;"),
        (without("net.1.running_var"), r"missing: net\.1\.running_var;"),
        (lambda state: {**state, "net.4.bias": torch.ones(3)}, r"unexpected: net\.4\.bias;"),
        (lambda state: {**state, "net.3.bias": torch.ones(5)}, r"net\.3\.bias is \(5,\) where the network has \(3,\)"),
        (
            lambda state: {f"module.{key}": value for key, value in without("net.3.bias")(state).items()},
            r"net\.3\.bias",
        ),
        (lambda state: {"weights": state, 3: 4}, r"3, weights — hold no state dict"),
        (lambda state: {}, r"missing: net\.0\.bias, net\.0\.weight, net\.1\.bias and \d+ more"),
        (broken, r"weights: net\.3\.weight — 144 of 432 values are NaN"),
    ],
)
def test_what_does_not_fit_is_named(damage: Callable[[State], Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        weight_files.load_weights(filled(Held(), 2), damage(filled(Held(), 1).state_dict()))
    assert "\n" not in str(caught.value)


def test_a_nan_in_a_network_of_ours_is_named() -> None:
    network = CNN(**FACTS, width=2)  # type: ignore[arg-type]
    state = {key: value * torch.nan if key == "head.bias" else value for key, value in network.state_dict().items()}
    with pytest.raises(DataError, match=r"head\.bias — 3 of 3 values are NaN"):
        weight_files.load_weights(network, state)


def test_what_cannot_be_read_is_refused_and_never_executed(tmp_path: Path) -> None:
    torch.save(Held(), tmp_path / "module.pt")  # a pickle of code
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no tensors")
    for name, said in (
        ("module.pt", "opened as tensors alone"),
        ("list.pt", "holds a list and no state dict"),
        ("text.pt", "opened as tensors alone"),
        ("text.safetensors", "is no safetensors file"),
        ("absent.pt", "there is no such file"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            weight_files.read_weights(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
