"""The attacks of atbench, foolbox, pyautoattack, torchattacks and ART behind one call; what is installed of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from atbench.config import registry
from atbench.config.instantiate import accepted_kwargs, build
from atbench.evaluation import EvalModel, PGDConfig
from atbench.evaluation.pgd_sweep import run_pgd
from atbench.runs.seeding import ExampleDraws

EXTRA = "pip install atbench[bench]"
#: How each tool is installed. MAIR is in no package index.
INSTALL = {
    "torchattacks": EXTRA,
    "foolbox": EXTRA,
    "ART": EXTRA,
    "pyautoattack": EXTRA,
    "MAIR": "put github.com/Harry24k/MAIR on PYTHONPATH",
}
MODULES = {"ART": "art", "MAIR": "mair"}

#: (x, y, rows) → images; rows are places in the data set.
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed(tool: str) -> bool:
    """Whether a tool of INSTALL can be imported."""
    return importlib.util.find_spec(MODULES.get(tool, tool)) is not None


def ours(network: nn.Module, name: str, eps: float, norm: str = "linf", **changes: Any) -> Run:
    """An attack of conf/attack, with some of its options replaced."""
    eval_model = EvalModel(network, 250)
    node = yaml.safe_load((registry.conf_dir() / "attack" / f"{name}.yaml").read_text(encoding="utf-8")) | changes
    attack = build(node, "attack", **accepted_kwargs(node, "attack", {"norm": norm, "eps": eps}))

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with eval_model.ready():
            x_adv: Tensor = attack(eval_model, x, y, ExampleDraws(0, name, index=rows))
        return x_adv

    return run


def sweep(network: nn.Module, eps: float, steps: int, step_size: float) -> Run:
    """Our PGD-1 to PGD-`steps` on one trajectory."""
    eval_model = EvalModel(network, 250)

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with eval_model.ready():
            return run_pgd(eval_model, x, y, rows, PGDConfig("linf", eps, step_size, steps)).x_adv

    return run


def foolbox(network: nn.Module, name: str, eps: float, repeat: int = 1, **options: Any) -> Run:
    import foolbox as fb

    model, attack = fb.PyTorchModel(network, bounds=(0, 1)), getattr(fb.attacks, name)(**options)
    attack = attack.repeat(repeat) if repeat > 1 else attack

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        torch.manual_seed(int(rows[0]))
        clipped: Tensor = attack(model, x, y, epsilons=eps)[1]
        return clipped

    return run


def autoattack(network: nn.Module, name: str, eps: float, norm: str = "Linf") -> Run:
    """One attack of pyautoattack, with the settings of version `standard`."""
    from pyautoattack import AutoAttack

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        tool = AutoAttack(network, norm=norm, eps=eps, version="standard", seed=int(rows[0]))
        tool.logger.disabled = True
        attack = {"apgd-ce": tool.apgd, "apgd-t": tool.apgd_targeted, "fab-t": tool.fab, "square": tool.square}[name]
        attack.seed = int(rows[0])
        if name == "apgd-ce":
            attack.loss = "ce"
        if name == "fab-t":
            attack.targeted, attack.n_restarts = True, 1
        found: Tensor = attack.perturb(x, y)
        return found

    return run


def torchattacks(network: nn.Module, name: str, **options: Any) -> Run:
    import torchattacks as ta

    attack = getattr(ta, name)(network, **options)

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        torch.manual_seed(int(rows[0]))
        x_adv: Tensor = attack(x, y)
        return x_adv

    return run


def art(network: nn.Module, eps: float, step: float, steps: int, restarts: int, shape: tuple[int, ...]) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    device = next(network.parameters()).device
    estimator = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        estimator, eps=eps, eps_step=step, max_iter=steps, num_random_init=restarts, batch_size=250, verbose=False
    )

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)

    return run


def repeated(attack: Run, network: nn.Module, restarts: int) -> Run:
    """Restarts in a plain loop: each on everything, the first misclassified answer is kept. So torchattacks is used."""

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        kept = x.clone()
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for restart in range(restarts):
            x_adv = attack(x, y, rows + 1000 * restart)
            with torch.no_grad():
                wrong = network(x_adv).argmax(dim=1) != y
            kept[wrong & ~found] = x_adv[wrong & ~found]
            found |= wrong
        return kept

    return run


def one_by_one(attacks: list[Run]) -> Run:
    """Several attacks, each from the beginning; answers with the last."""

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return [attack(x, y, rows) for attack in attacks][-1]

    return run
