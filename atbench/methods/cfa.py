"""Class-wise calibrated fair adversarial training; averaging of the weights is `plus.fawa`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, kl_from
from atbench.config.ranges import NotNegative, SomeShare
from atbench.data import Batch, TrainData
from atbench.errors import refuse_unknown
from atbench.methods.base import Decision, FixedSteps, Loss, Report, eps_spread
from atbench.methods.divergences import kl_divergence
from atbench.methods.pgd_at import PgdAt

BASES = ("pgd_at", "trades")


class Cfa(PgdAt):
    """CFA (Wei et al. 2023, CVPR, arXiv 2303.14460): a radius ε_c and, on TRADES, a weight β_c for each class c.

    r_c: accuracy on the x' of class c over the epoch before, with the logits of the loss. From the share `begin` on:
    - ε_c = (λ1 + r_c) · ε: a class that holds is attacked in a larger ball, one that does not in a smaller;
    - β_c = b/(1 + b), b = (λ2 + r_c) · β. Before `begin` it is the base, ε_c = ε and b = β.
    Inner: maximise CE(f(x'), y) or, on TRADES, KL(f(x) ‖ f(x')) in the ball of radius ε_y; in train mode from a uniform
    start or, on TRADES, in eval mode from x + 0.001·N(0, 1). Outer, on PGD-AT: mean CE(f(x'), y); on TRADES: mean_i
    (1 − β_y) · CE(f(x), y) + β_y · KL(f(x) ‖ f(x')), which is TRADES over 1 + β where all classes are alike. The
    weights are averaged by `plus.fawa`, which the method's YAML switches on.
    Cost: (2k + 4) forward passes a batch on PGD-AT, (2k + 8) on TRADES, of which 1 is the clean pass.

    Source: PKU-ML/CFA (train.py, attack.py). Its TRADES forwards the clean batch twice in the update, so that running
    statistics see it once more. It counts each class as a K-th of the images; here they are counted. Its third base,
    FAT, is left out.
    Known weaknesses: steps do not grow with ε_c, which reaches (1 + λ1) · ε. Judge it by its worst class, which stands
    in every epoch's row and every record. Not on RobustBench; an AutoAttack figure of others was not found.

    Args:
        base: `pgd_at`, or `trades`, which wants attack.start=gaussian attack.bn=eval.
        lambda_1: λ1, what r_c is added to for the radius.
        lambda_2: λ2, what r_c is added to for the weight; of `trades` alone.
        beta: β of `trades`.
        begin: share of training from which classes differ; the first epoch has nothing to go by.
        clean_pass: a clean forward after each update, for the statistics of BatchNorm alone: the code makes one.
    """

    requires_hard_labels = True
    seen: Tensor
    right: Tensor
    robust: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        base: str = "pgd_at",
        lambda_1: NotNegative = 0.5,
        lambda_2: NotNegative = 0.5,
        beta: NotNegative = 6.0,
        begin: SomeShare = 10 / 200,
        clean_pass: bool = True,
    ) -> None:
        super().__init__(model, attack, clean_pass)
        refuse_unknown("method.base", base, BASES)
        self.base, self.lambda_1, self.lambda_2, self.beta, self.begin = base, lambda_1, lambda_2, beta, begin

    def setup(self, data: TrainData) -> None:
        zeros = torch.zeros(len(data.source.classes), dtype=torch.float64, device=data.device)
        self.register_buffer("seen", zeros.clone())  # examples of each class in this epoch
        self.register_buffer("right", zeros.clone())  # and those of them whose x' was classified right
        self.register_buffer("robust", zeros.clone())  # r_c

    def class_factors(self, shift: float) -> Tensor:
        """λ + r_c of every class, (K,); 1 before `begin`."""
        if self.clock.epoch < self.begin * self.clock.epochs - 1e-9:  # 10/200 of 200 is 10
            return torch.ones_like(self.robust)
        return shift + self.robust

    def perturb(self, batch: Batch) -> Batch:
        objective = Objective(self.model, self.attack_risk, batch.y)
        if self.base == "trades":
            objective = Objective(self.model, kl_from, self.probabilities(batch.x))
        eps = self.attack.eps * self.class_factors(self.lambda_1)
        return batch.with_adv(self.run_attack(objective, batch.x, eps=eps[batch.y]))

    def loss(self, batch: Batch) -> Loss:
        loss = self._trades(batch) if self.base == "trades" else super().loss(batch)
        assert loss.logits is not None
        batch.aux["right"] = loss.logits.detach().argmax(dim=1) == batch.y  # `after_update` counts them
        return loss

    def _trades(self, batch: Batch) -> Loss:
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        ce, kl = self.risk(clean, batch.y), kl_divergence(clean, adversarial)
        b = self.beta * self.class_factors(self.lambda_2)
        beta = (b / (1 + b))[batch.y].to(ce.dtype)
        terms = {"ce": ce.detach().mean(), "kl": kl.detach().mean()}
        return Loss(((1 - beta) * ce + beta * kl).mean(), terms, adversarial)

    def after_update(self, batch: Batch) -> None:
        super().after_update(batch)
        y, right = self.gather(batch.y), self.gather(batch.aux["right"]).to(self.right.dtype)
        self.seen.index_add_(0, y, torch.ones_like(right))
        self.right.index_add_(0, y, right)

    def _accuracies(self) -> Tensor:
        return self.right / self.seen.clamp_min(1)

    def epoch_figures(self) -> dict[str, float]:
        worst = float(self._accuracies().min())
        return {**eps_spread(self.attack.eps * self.class_factors(self.lambda_1)), "worst_class": worst}

    def on_epoch(self, report: Report) -> Decision | None:
        self.robust.copy_(self._accuracies())
        self.seen.zero_()
        self.right.zero_()
        return None

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {"attack": FixedSteps(self.attack.steps, self.attack.step_size, (1 + self.lambda_1) * self.attack.eps)}

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + (7 if self.base == "trades" else 3) + self.clean_pass
