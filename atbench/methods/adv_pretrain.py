"""Adversarial pre-training, then tuning with a new head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from atbench.attacks import GradientAttack
from atbench.config.ranges import Positive
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.stage import Stage
from atbench.models import Network

HEAD = "head."


class AdvPretrain(PgdAt):
    """Adversarial pre-training (Hendrycks et al. 2019a, ICML, arXiv 1901.09960): PGD-AT from a network that PGD-AT has
    trained on another label space.

    1. A stage of pre-training is PGD-AT with the run's attack on other data: by default the run's images in their
    quarter turns, which are the labels. 2. All of its tensors but the head's are taken over, normalisation and running
    statistics too. 3. PGD-AT of all layers; head and optimizer begin anew. An epoch of the stage is one of its own
    data: of rotations it has four times the images.
    Cost: (2k + 3) forward passes a batch, before that the stage's run.

    Source: hendrycks/pre-training (robustness/adversarial/train_imagenet.py, tune.py, attacks.py), which pre-trains on
    ImageNet at 32×32 (`experiment=paper/adv_pretrain`; rotations are ours). Its attack adds the start's noise to the
    clean images in place, in training, tuning and evaluation: x' is up to 2ε away, and the reported 57.4 % (CIFAR-10,
    PGD-20) is around noisy images. Here the ball's centre is x.
    Robust accuracy later measured by AutoAttack: 54.92 %; reported: 57.4 % (RobustBench, WRN-28-10).

    Args:
        stage_network: makes the network of a stage.
        pretrain: the words of a command line that tell the stage's run from this one (`['dataset=cifar100']`), or the
            folder or a checkpoint of a finished run.
        pretrain_epochs: epochs of the stage as a share of the run's.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        stage_network: Callable[..., nn.Module],
        pretrain: str | Sequence[str],
        pretrain_epochs: Positive = 0.25,
    ) -> None:
        super().__init__(model, attack)
        if not isinstance(model, Network):
            why = "one network's head is replaced"
            raise ConfigError("model", type(model).__name__, why, "use a model with stages, and model.members=1")
        if isinstance(pretrain, str):
            self.stage = Stage(checkpoint=pretrain, live=True)
        else:
            pgd_at = {"_target_": "atbench.methods.pgd_at.PgdAt"}
            self.stage = Stage(pgd_at, pretrain_epochs, offset=1, overrides=tuple(pretrain), live=True)
        self._check_body(stage_network(self.stage, any_classes=True))

    def _check_body(self, network: nn.Module) -> None:
        """Refuse a stage's network that differs from the run's before the head."""
        ours, theirs = (
            {name: value.shape for name, value in each.state_dict().items() if not name.startswith(HEAD)}
            for each in (self.model, network)
        )
        if ours != theirs:
            odd = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))[0]
            given = self.stage.checkpoint or " ".join(self.stage.overrides)
            why = f"its network differs from the run's before the head, in '{odd}'"
            raise ConfigError("method.pretrain", given, why, "use the same model for both")

    def pretraining(self) -> dict[str, Stage]:
        return {"pretrained": self.stage}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        body = stages["pretrained"].state_dict().items()
        taken = {name: value for name, value in body if not name.startswith(HEAD)}
        self.model.load_state_dict({**self.model.state_dict(), **taken})
