"""YOPO."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import clip
from atbench.config.ranges import Count
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method, Round
from atbench.models import Network, attack_mode

FIRST_LAYER_GRADIENTS = ("hamiltonian", "full", "both")


class Yopo(Method):
    """YOPO-m-n (Zhang et al. 2019a, NeurIPS, arXiv 1905.00877, alg. 1): m full passes, n cheap ascent steps after each.

    With f = rest ∘ f₀ and the adjoint p = −∂CE/∂f₀ held fixed, the Hamiltonian is H(η) = ⟨p, f₀(clip(x + η))⟩, and
    η ← Π_{B(0, ε)}( η − s · d(∇_η H) ) costs a pass through f₀ alone. η starts at U(−ε, ε) for every batch, and may
    leave the pixels in the first full pass; there the clip stops H's gradient.
    Gradient of the update: for `rest` the mean over j of ∂CE/∂θ at x + η_{j−1}; for f₀ the mean of −∂H/∂θ₀ at the new
    η_j, and of ∂CE/∂θ₀ as for `rest`. The m passes accumulate into one update. Cost: 3m forward passes a batch, and
    2m·n passes through f₀.

    Here round j computes CE through f at x + η_{j−1} (through `rest` alone where f₀ gets H only) and −H of round j−1 at
    the same η, in one forward; a last round of f₀ alone brings the m-th term. Every part goes through the wrapper of
    distributed training.

    Paper and code: a1600012888/YOPO-You-Only-Propagate-Once puts f₀'s gradient aside before each full pass, to drop
    what that pass adds; but autograd adds in place, to the very tensor that was put aside, and both count. The
    published figures come from there, so `both` is the default; `hamiltonian` is the paper's. (Since torch 2.0 a batch
    begins without a tensor, and its first full pass is dropped; the authors ran 1.0, which begins with zeros.) Its m
    gradients are summed, and are a mean here: the same update at m times its rate and an m-th of its weight decay. It
    forwards the last images once more in train mode, for its log: running statistics of BatchNorm see them there.
    Robust accuracy later measured by AutoAttack: 44.83 %; reported: 47.98 % (RobustBench, WRN-34-10).

    Args:
        m, n: full passes, and steps through f₀ after each; the step size is the attack's.
        first_layer_grad: f₀'s: `hamiltonian` (−∂H/∂θ₀ at η_j), `full` (the plain gradient at η_{j−1}), `both` added.
    """

    accumulates = True

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        m: Count = 5,
        n: Count = 3,
        first_layer_grad: str = "both",
    ) -> None:
        super().__init__(model, attack)
        if first_layer_grad not in FIRST_LAYER_GRADIENTS:
            known = ", ".join(FIRST_LAYER_GRADIENTS)
            raise ConfigError(
                "method.first_layer_grad", first_layer_grad, "there is no such choice", f"use one of {known}"
            )
        if not isinstance(model, Network) or model.depth < 2:
            raise ConfigError(
                "method", "yopo", "needs one network that can be split after its first stage", "use another model"
            )
        self.m, self.n, self.first_layer_grad = m, n, first_layer_grad

    @property
    def network(self) -> Network:
        """The model, known to have stages."""
        assert isinstance(self.model, Network)
        return self.model

    def perturb(self, batch: Batch) -> Batch:
        return batch  # the search shares its passes with the update

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {"method.m x method.n": FixedSteps(self.m * self.n, self.attack.step_size, self.attack.eps)}

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        eta = self.attack.ball.sample(batch.x, self.attack.eps, self.rng("start"))
        batch = batch.with_adv(batch.x + eta)
        hamiltonian = self.first_layer_grad != "full"
        for j in range(self.m):
            now = Round(batch.with_adv(loop=j), perturb=False, step=not hamiltonian and j == self.m - 1)
            yield now
            adjoint = now.batch.aux["adjoint"]
            batch = batch.with_adv(batch.x + self._ascend(batch.x, batch.x_adv - batch.x, adjoint), slope=adjoint)
        if hamiltonian:
            # The m-th Hamiltonian term has no cross-entropy, and no part in the record's loss.
            yield Round(batch.with_adv(loop=self.m), perturb=False, weight=0)

    def _ascend(self, x: Tensor, eta: Tensor, adjoint: Tensor) -> Tensor:
        """n steps of η up the linearised loss ⟨∂CE/∂f₀, f₀(x + η)⟩, inside ball and box."""
        with attack_mode(self, self.attack.bn):
            for _ in range(self.n):
                eta = eta.detach().requires_grad_()
                rise = (self._first(clip(x + eta)) * adjoint).sum()
                grad = torch.autograd.grad(rise, eta)[0]
                ahead = x + eta.detach() + self.attack.step_size * self.attack.ball.steepest(grad)
                eta = self.attack.ball.project(x, ahead, self.attack.eps) - x
        return eta.detach()

    def _first(self, x: Tensor) -> Tensor:
        return self.network.features(x, upto=0)

    def loss(self, batch: Batch) -> Loss:
        loop, split = batch.aux["loop"], self._first(batch.x_adv)
        total = split.new_zeros(())
        if self.first_layer_grad != "full" and loop > 0:
            total = (split * batch.aux["slope"]).sum()
        if loop == self.m:
            return Loss(total / self.m, {})
        through = self.first_layer_grad != "hamiltonian"
        # A node of its own in either case: its gradient is ∂CE/∂f₀ alone, without the Hamiltonian's part.
        entry = split.view_as(split) if through else split.detach().requires_grad_()
        logits = self.network.classify(self.network.continue_from(entry, 1))
        risk = self.risk(logits, batch.y).mean()
        # The adjoint is read off the one backward pass there is, for `inner_updates` to ascend with.
        entry.register_hook(lambda grad: batch.aux.__setitem__("adjoint", grad.detach() * self.m))
        terms = {"loss": risk.detach()}
        return Loss((risk + total) / self.m, terms, logits)
