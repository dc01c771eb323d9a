"""Networks whose nearest misclassified image is known in closed form, and what stands around an attack in tests."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch import Tensor, nn

from atbench.attacks import Attack
from atbench.config import registry
from atbench.config.instantiate import accepted_kwargs, build, locate
from atbench.data import Images
from atbench.runs.seeding import ExampleDraws

CLASSES, SIDE = 5, 6
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
#: Small budgets, under the names that attacks give theirs: the contract is about what holds for any budget.
SMALL = {"steps": 24, "restarts": 2, "samples": 24, "eot_samples": 2, "targets": 2, "searches": 5, "cycles": 2}
#: Options without which an attack refuses to be built.
REQUIRED = {"transfer": {"run": "other"}}


class Linear(nn.Module):
    """z = W x + b on (B, 1, 6, 6), in double precision, with a `features` that W acts upon; counts its passes."""

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(SIDE * SIDE, classes).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Aim:
    """The least Target: counts forward passes of single images, with and without a gradient."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.passes, self.gradients = network, 0, 0

    def logits(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        self.gradients += len(x) * int(x.requires_grad)
        return self.network(x)


def images(network: nn.Module, n: int = 40, low: float = 0.35, high: float = 0.65) -> tuple[Tensor, Tensor]:
    """Grey 8-bit images away from the edges of the box, labelled as the network says."""
    source = torch.Generator().manual_seed(3)
    x = torch.randint(round(255 * low), round(255 * high), (n, 1, SIDE, SIDE), generator=source).double() / 255
    with torch.no_grad():
        return x, network(x).argmax(dim=1)


def distance(network: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """min_k (z_y − z_k) / ‖w_y − w_k‖_q: the distance to the nearest other class, where the box does not matter."""
    weight = network.head.weight.detach()
    with torch.no_grad():
        logits = network(x)
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for k in range(weight.shape[0]):
        gap = (logits.gather(1, y[:, None]).squeeze(1) - logits[:, k]) / (weight[y] - weight[k]).norm(
            p=DUAL[norm], dim=1
        )
        nearest = torch.where(y == k, nearest, torch.minimum(nearest, gap))
    return nearest


def draws(n: int, seed: int = 0) -> ExampleDraws:
    return ExampleDraws(seed, "test", index=torch.arange(n))


def node(name: str, **changes: Any) -> dict[str, Any]:
    """The YAML of an attack as a dictionary, `norm` and `eps` left out, with some of its options replaced."""
    content = yaml.safe_load((registry.conf_dir() / "attack" / f"{name}.yaml").read_text(encoding="utf-8"))
    for base in content.pop("defaults", ()):  # an attack that is another one with changes
        content = content if base == "_self_" else {**node(base), **content}
    return {key: value for key, value in {**content, **changes}.items() if key not in ("norm", "eps")}


def make(name: str, norm: str, eps: float, small: bool = True, **changes: Any) -> Attack:
    """The attack `name` at this norm and radius, with a small budget, given what an evaluation would give it."""
    content = node(name)
    if small:
        content |= {key: min(value, SMALL[key]) for key, value in content.items() if key in SMALL and value}
    content |= REQUIRED.get(name, {}) | changes
    x, y = images(Linear())
    offered = {
        "norm": norm,
        "eps": eps,
        "images": Images((x * 255).round().to(torch.uint8), y),
        "load": lambda run: Linear(seed=1).eval(),
    }
    return build(content, "attack", **accepted_kwargs(content, "attack", offered))


def kind(name: str) -> type:
    return locate(node(name)["_target_"], "attack._target_")


#: The attacks that only an evaluation can run, by name.
NAMES = sorted(name for name in registry.options("attack", [registry.conf_dir()]) if issubclass(kind(name), Attack))
CASES = [(name, norm) for name in NAMES for norm in kind(name).norms]
#: Queries, noise, other networks' gradients and features promise nothing of what a gradient of the logits must find,
#: and a single step goes from its random start towards a mixture of the classes.
GRADIENT = [(name, norm) for name, norm in CASES if kind(name).access == "gradient" and node(name).get("steps") != 1]
#: Cross-entropy climbs towards a mixture of the classes. An L1 step spends itself on one pixel, and the mixture's best
#: pixel need not serve the nearest class, however small the steps are. So does the confidence in one class.
MIXED = {name for name in NAMES if node(name).get("objective") == "ce"} | {"confident"}
NEAREST = [(name, norm) for name, norm in GRADIENT if norm != "l1" or name not in MIXED]
