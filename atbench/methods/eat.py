"""Ensemble adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, SelfLabelled, cross_entropy
from atbench.config.ranges import Positive
from atbench.data import Batch
from atbench.methods.fgsm_at import FgsmAt
from atbench.methods.stage import Stage
from atbench.models import attack_mode
from atbench.runs.seeding import generator


class Eat(FgsmAt):
    """Ensemble adversarial training (Tramèr et al. 2018, ICLR, arXiv 1705.07204): ½·CE(f(x), y) + ½·CE(f(x'), y).

    Inner: x' = x + ε·sign(∇_x Σ CE(g(x), t)), one step from x; t is the class that g itself predicts at x (classes that
    tie share it). g is drawn once a batch, uniformly among f and n static sources: networks of other architectures or
    seeds, trained on clean images before f and never again. So most images do not depend on f, and masking its own
    gradient does not help it against them. Dropout is active in every forward, with masks of its own. Outer: as FGSM
    training, true labels, two forwards.
    Cost: 2k forward passes of g and 6 of f a batch; before that the sources' own runs. With no source it is FGSM
    training towards the prediction.

    With adversarial training on top, images of the same sources by PGD: `attack.steps=10 attack.start=uniform`, with
    `attack.step_size` and, as is usual there, `method.target=label`. The authors have no such variant.

    Source: ftramer/ensemble-adv-training (train_adv.py, tf_utils.py, attack_utils.py, fgs.py), MNIST alone. It has no
    BatchNorm; here crafting uses batch statistics and leaves the running ones as they are, those of the sources in
    every mode. Left out: the ImageNet recipe (Step-LL), which was not published as code.
    Known weaknesses: robust against transferred single steps; little is left under a white-box multi-step attack (from
    memory), and no AutoAttack figure is known.

    Args:
        stage_network: makes the network of a stage.
        sources: by name, the words of a command line that tell a static source's own run from this one
            (`[model=lenet]`; none: another seed), or the folder or a checkpoint of a finished run.
        epochs: share of the run's epochs that a source is trained for.
        target: t, `prediction` or `label`.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[[Stage], nn.Module],
        sources: Mapping[str, str | Sequence[str]],
        epochs: Positive = 0.5,
        target: str = "prediction",
    ) -> None:
        super().__init__(model, attack, clean=0.5, target=target)
        standard = {"_target_": "atbench.methods.standard.Standard"}
        # A seed of its own for each: a source that begins like the network would be it for a while.
        self.stages = {
            name: Stage(checkpoint=words, live=True)
            if isinstance(words, str)
            else Stage(standard, epochs, number, tuple(words), live=True)
            for number, (name, words) in enumerate(sources.items(), start=1)
        }
        self.sources = nn.ModuleDict({name: stage_network(stage) for name, stage in self.stages.items()})
        self.sources.requires_grad_(False)

    def pretraining(self) -> dict[str, Stage]:
        return self.stages

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        for name, source in self.sources.items():
            source.load_state_dict(stages[name].state_dict())

    def source(self) -> nn.Module:
        """g of this batch."""
        networks = [*self.sources.values(), self.model]
        draw = generator("cpu", self.clock.seed, "eat-source", self.clock.epoch, self.clock.step)
        return networks[int(torch.randint(len(networks), (), generator=draw))]

    def perturb(self, batch: Batch) -> Batch:
        source, mode = self.source(), self.attack.bn
        if self.target == "label":
            objective = Objective(source, self.attack_risk, batch.y)
        else:
            objective = SelfLabelled(source, cross_entropy, most_likely)
        if source is not self.model and mode == "train":
            mode = "batch"  # a static source's running statistics do not move
        with attack_mode(self, self.attack.bn), attack_mode(source, mode, freeze=False):
            return batch.with_adv(self.attack(objective, batch.x, rng=self.rng()))

    def forward_cost(self, steps: int) -> None:
        return None  # a forward pass of a source costs what its architecture does


def most_likely(logits: Tensor) -> Tensor:
    """(B, K): 1 at the highest logit, shared evenly where several are highest."""
    top = (logits == logits.amax(dim=1, keepdim=True)).to(logits.dtype)
    return top / top.sum(dim=1, keepdim=True)
