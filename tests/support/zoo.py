"""Networks whose evaluation lies, each for one reason, and honest ones beside them, trained on digits in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atbench.attacks import GradientAttack, Objective, cross_entropy, kl_from
from atbench.data import Images
from atbench.data.digits import digits
from atbench.models.cnn import CNN
from atbench.runs.seeding import Draws, generator

SOURCE = digits()
EPS, STEP = 0.2, 0.05
BATCH, RATE = 64, 0.1


class Dense(nn.Module):
    """A network without convolutions, in a fifth of their time."""

    def __init__(self, hidden: int = 2, width: int = 256, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten())
        for layer in range(hidden):
            self.layers.append(nn.Linear(width if layer else 64, width))
            self.layers.extend([nn.BatchNorm1d(width)] if norm else [])
            self.layers.append(nn.ReLU())
        self.layers.append(nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - SOURCE.mean[0]) / SOURCE.std[0])


def train(
    make: Callable[[], nn.Module],
    epochs: int,
    attack: GradientAttack | None = None,
    beta: float = 0.0,
    decay: float = 5e-4,
) -> nn.Module:
    """SGD with a one-cycle rate on clean images, on those of an attack (Madry), or by TRADES with a weight `beta`."""
    torch.manual_seed(0)
    network, images = make(), SOURCE.train
    per_epoch = len(images) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * per_epoch)
    order = generator("cpu", 0, "order")
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order)[: per_epoch * BATCH].split(BATCH):
            x, y = images.floats(rows), images.y[rows]
            x_adv = x if attack is None else perturb(network, attack, x, y, beta, order)
            network.train()
            if beta:
                logits = network(x)
                robust = F.kl_div(network(x_adv).log_softmax(dim=1), logits.softmax(dim=1), reduction="batchmean")
                loss = F.cross_entropy(logits, y) + beta * robust
            else:
                loss = F.cross_entropy(network(x_adv), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def perturb(
    network: nn.Module, attack: GradientAttack, x: Tensor, y: Tensor, beta: float, source: torch.Generator
) -> Tensor:
    network.eval().requires_grad_(False)
    objective = Objective(network, kl_from, network(x).softmax(dim=1)) if beta else Objective(network, cross_entropy, y)
    x_adv = attack(objective, x, rng=Draws(source))
    network.requires_grad_(True)
    return x_adv


def standard() -> nn.Module:
    return train(lambda: Dense(norm=True), epochs=8)


def narrow() -> nn.Module:
    """A standard-trained convolutional network of width 4."""
    return train(lambda: CNN((1, 8, 8), 10, SOURCE.mean, SOURCE.std, width=4), epochs=8)


def pgd_trained() -> nn.Module:
    return train(Dense, epochs=15, attack=GradientAttack("linf", EPS, 5, STEP))


def trades() -> nn.Module:
    return train(Dense, epochs=15, attack=GradientAttack("linf", EPS, 5, STEP, start="gaussian"), beta=6)


def l2_trained() -> nn.Module:
    return train(Dense, epochs=10, attack=GradientAttack("l2", 1.0, 5, 0.25))


def overfitted() -> nn.Module:
    """Trained on FGSM of 0.3 from the image itself: it keeps 76 % under FGSM of 0.2, and 29 % under PGD."""
    return train(lambda: Dense(3), epochs=40, attack=GradientAttack("linf", 0.3, 1, 0.3, start="zero"), decay=0)


def images(n: int) -> Images:
    return SOURCE.test().take(torch.arange(n))


class Broken(nn.Module):
    """A defence around a network. Every one here is known to fail: Athalye et al. 2018, Carlini et al. 2019."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class LoudLogits(Broken):
    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.network(x)


class Softmax(Broken):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(dim=1)


class Quantised(Broken):
    """The input in five grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((4 * x).round() / 4)


class OneHot(Broken):
    """The decision alone, without a way for gradients."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


class Noisy(Broken):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.1 * torch.randn_like(x))


class Dropped(Broken):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.dropout(x, 0.2, training=True))


class BatchStatistics(Broken):
    """BatchNorm on statistics of the batch, whatever mode the network is put into; moves no running averages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for norm in network.modules():
            if isinstance(norm, _BatchNorm):
                norm.forward = lambda h, norm=norm: F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)


class RunningStatistics(Broken):
    """The same, and every pass moves the running averages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for norm in network.modules():
            if isinstance(norm, _BatchNorm):
                norm.forward = lambda h, norm=norm: F.batch_norm(
                    h, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True
                )


class Restless(Broken):
    """Switches itself into train mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.network(x)
        self.network.train()
        return out


class Purifying(Broken):
    """Takes a step towards its own confidence first: an adaptive defence at test time."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            seed = x.detach().requires_grad_()
            confidence = self.network(seed).log_softmax(dim=1).amax(dim=1).sum()
            step = torch.autograd.grad(confidence, seed)[0].sign()
        return self.network((x + 0.02 * step).clamp(0, 1))


class Misleading(Broken):
    """Right outputs, and gradients that point the other way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(Reversed.apply(x))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return -grad


class Decoy(Broken):
    """One wrong class follows the image's brightness just below the largest logit, and draws every untargeted loss."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        top, label = logits.max(dim=1, keepdim=True)
        wave = 0.4 * (2000 * x.flatten(1).mean(dim=1, keepdim=True)).sin()
        return logits.scatter(1, (label + 1) % logits.shape[1], top - 0.5 + wave)
