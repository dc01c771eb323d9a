"""The contract of a training method: the attack's objective, the loss of the update, the state between updates.

Most methods are `perturb` and `loss`; the other hooks have defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.attacks.ascent.loop import Stop as StopRule
from atbench.attacks.norms.lp_ball import Radius
from atbench.data import Batch, TrainData
from atbench.methods.gather import GatherRows, gather_rows
from atbench.methods.stage import Stage
from atbench.models import attack_mode
from atbench.runs.seeding import Draws, derive_seed


class Loss(NamedTuple):
    """Return value of `Method.loss`: the scalar to minimise, named detached terms for the record, and the logits of the
    images trained on, (n·B, K) for n copies of the batch, for the record's `accuracy`.

    The record's `loss` is `total`, unless there is a term `loss`.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None = None


class FixedSteps(NamedTuple):
    """An attack with steps of one size: their number, their length, and the radius of the ball."""

    number: int
    length: float
    eps: float


@dataclass
class Clock:
    """Position in training. The trainer sets it; methods read it, and write schedules as functions of `fraction`."""

    epochs: int = 1
    steps: int = 1  # per epoch
    epoch: int = 0
    step: int = 0  # within the epoch
    round: int = 0  # within the batch
    seed: int = 0
    rank: int = 0
    world: int = 1
    rates: dict[str, float] = field(default_factory=dict)  # the learning rate of each group for this batch

    @property
    def fraction(self) -> float:
        """Share of training done before this step, in [0, 1)."""
        return (self.epoch * self.steps + self.step) / (self.epochs * self.steps)


@dataclass
class Round:
    """One use of a loaded batch.

    The trainer replaces `batch` by `perturb(batch)` if `perturb`; computes the loss and its gradient; updates the
    parameters if `step`, and lets gradients accumulate towards the next round's update otherwise; then calls
    `after_update(batch)`, and adds loss and terms to the epoch's means with `weight`.
    """

    batch: Batch
    perturb: bool = True
    step: bool = True
    weight: float = 1.0


@dataclass(frozen=True)
class Stop:
    """End training here, with the weights of a kept state if `restore` names one."""

    why: str
    restore: str | None = None


@dataclass(frozen=True)
class Keep:
    """Remember the current state of `model` and `optimizer` under a name (a file beside the checkpoints)."""

    name: str


@dataclass(frozen=True)
class Restore:
    """Go back to a kept state, in the parts named (`model`, `optimizer`); the clock goes on."""

    name: str
    parts: tuple[str, ...] = ("model", "optimizer")


Decision = Stop | Keep | Restore


class Validate(Protocol):
    """Accuracy on the held-out part of the training data under the run's attack with some settings replaced."""

    def __call__(self, **changes: Any) -> float: ...


@dataclass(frozen=True)
class Report:
    """Argument of `on_epoch`: the epoch's row of metrics, and a function that measures more on the held-out part."""

    row: dict[str, Any]
    validate: Validate


class Method(nn.Module):
    """Base class of training methods: PGD adversarial training without a loss. Subclasses implement `loss`.

    Everything a method owns (heads, teachers, tables, a kept delta) is a submodule or buffer of it, and so moves, saves
    and restores with it. `forward` is `loss` or `ascent_loss`: DistributedDataParallel wraps the method, and every pass
    whose gradient counts goes through the wrapper. `perturb`, `loss` and `inner_updates` write no state that outlives
    the batch, since any of them may run more than once for one update; `after_update` does.
    """

    #: The loss differentiates a gradient: fp32, uncompiled.
    second_order = False
    #: One update accumulates gradients over several rounds; a weight perturbation (AWP) is refused.
    accumulates = False
    #: A batch may go through in parts (`train.micro_batch`): `perturb` and `loss` need no rows but their own.
    takes_micro_batches = True
    #: The loss or a step after the update uses weights themselves, outside of a forward pass; `train.shard` is refused.
    reads_weights = False
    #: The label must be one class; mixed images (CutMix, MixUp), whose labels are soft, are refused.
    requires_hard_labels = False

    def __init__(self, model: nn.Module, attack: GradientAttack) -> None:
        super().__init__()
        self.model, self.attack = model, attack
        self.clock = Clock()
        #: Outer classification loss, (logits, y) -> (B,), with the run's label smoothing and margin.
        self.risk = nn.CrossEntropyLoss(reduction="none")
        #: What searches of cross-entropy climb, (logits, y) -> (B,), with `train.attack_label_smoothing`.
        self.attack_risk = nn.CrossEntropyLoss(reduction="none")

    # The two functions that most methods are.

    def perturb(self, batch: Batch) -> Batch:
        """The inner maximisation; by default max_δ CE(f(x+δ), y) with the configured attack."""
        return batch.with_adv(self.run_attack(Objective(self.model, self.attack_risk, batch.y), batch.x))

    def loss(self, batch: Batch) -> Loss:
        """The outer minimisation, over one perturbed batch."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss(batch)")

    def ascent_loss(self, batch: Batch) -> Loss:
        """What a weight perturbation (AWP) ascends, of the perturbed batch; by default the loss."""
        return self.loss(batch)

    def forward(self, batch: Batch, ascent: bool = False) -> Loss:
        return self.ascent_loss(batch) if ascent else self.loss(batch)

    # State.

    def setup(self, data: TrainData) -> None:
        """Allocate tables and streams; the clock is set. Called at every start, before state is loaded: cheap."""

    def pretraining(self) -> dict[str, Stage]:
        """Networks needed first, by name; each has a folder in the run folder and is resumable by itself."""
        return {}

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        """Copy the networks of `pretraining`. Not called on resume: what is needed later belongs in the state."""

    def after_update(self, batch: Batch) -> None:
        """Write state, once a round, after the update; from gathered values, so that all processes agree."""

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        """The rounds of one loaded batch, by default one; the trainer runs them all before the next batch."""
        yield Round(batch)

    def evaluated(self) -> nn.Module:
        """The network that is validated, kept in checkpoints and evaluated: the live model, or a copy that follows it.

        An average of `plus` is one of the live model, and goes before it.
        """
        return self.model

    def on_epoch(self, report: Report) -> Decision | None:
        """Called after each epoch with the validation figures, the same on every process."""
        return None

    def epoch_figures(self) -> dict[str, float]:
        """What the method adapts, by name, for the epoch's row and line: the stage of a curriculum, `eps_spread`.

        Called after each epoch, before `on_epoch`; the same on every process.
        """
        return {}

    def fixed_steps(self) -> dict[str, FixedSteps]:
        """Attacks of training with steps of one length, by configuration key; none where step sizes follow from ε."""
        own = self.attack
        return {} if own.rule in ("adam", "gradient") else {"attack": FixedSteps(own.steps, own.step_size, own.eps)}

    def single_step(self) -> bool:
        """Whether training searches with one gradient step, which may overfit catastrophically and is watched."""
        return self.attack.steps == 1

    def groups(self) -> dict[str, nn.Module]:
        """Modules to train, by name, each with an optimizer and a schedule. Others are not trained or clipped."""
        return {"model": self.model}

    def forward_cost(self, steps: int) -> float | None:
        """Minimum cost of a batch in forward passes under an attack of `steps` steps; None where it varies."""
        return None

    # What methods use, and what is asked of them.

    def attacks(self) -> list[GradientAttack]:
        """Every attack that the method holds, as an attribute or as a value of a dictionary (one a norm)."""
        held = [value for own in vars(self).values() for value in (own.values() if isinstance(own, dict) else (own,))]
        return [attack for attack in held if isinstance(attack, GradientAttack)]

    def rng(self, stream: str = "search") -> Draws:
        """Random numbers for this step and round: a fresh generator at every call, joint over processes."""
        clock = self.clock
        seed = derive_seed(clock.seed, stream, clock.epoch, clock.step, clock.round)
        source = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        return Draws(source, clock.rank, clock.world)

    def run_attack(
        self,
        objective: Objective,
        x: Tensor,
        *,
        start: Tensor | None = None,
        eps: Radius | None = None,
        step_size: Radius | None = None,
        steps: int | None = None,
        stop: StopRule | None = None,
        stream: str = "search",
    ) -> Tensor:
        """Run the configured attack in its BatchNorm mode, with all networks frozen. Returns x_adv, detached."""
        options: dict[str, Any] = {"start": start, "eps": eps, "step_size": step_size, "steps": steps, "stop": stop}
        with attack_mode(self, self.attack.bn):
            return self.attack(objective, x, rng=self.rng(stream), **options)

    def input_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """∇_x CE(f(x), y) of each example and the logits, in the attack's mode with all networks frozen, detached."""
        with attack_mode(self, self.attack.bn):
            x = x.detach().requires_grad_()
            logits = self.model(x)
            return torch.autograd.grad(self.attack_risk(logits, y).sum(), x)[0], logits.detach()

    def probabilities(self, x: Tensor, network: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """softmax(f(x)) in the attack's mode, without gradient: the reference of KL-type attacks."""
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            return (network or self.model)(x).softmax(dim=1)

    def subset_mask(self, batch: Batch, share: float) -> Tensor:
        """(B,) bool: a `share` of the rows, spread evenly over the joint batch (which is shuffled)."""
        first = self.clock.rank * len(batch)
        rows = torch.arange(first, first + len(batch), device=batch.x.device, dtype=torch.float64)
        # A share such as 0.3 is a little off in binary: without the nudge 10 rows could have 2 instead of 3.
        return ((rows + 1) * share + 1e-9).floor() > (rows * share + 1e-9).floor()

    def gather(self, tensor: Tensor, *, differentiable: bool = False) -> Tensor:
        """Rows of all processes in the order of the joint batch; the tensor itself on a single process.

        `differentiable`: with gradients to this process's rows, for a loss of the joint batch that every process
        computes in full.
        """
        if self.clock.world == 1:
            return tensor
        return GatherRows.apply(tensor) if differentiable else gather_rows(tensor)


def eps_spread(eps: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the examples' radii `eps` (N,), as the figures `eps_mean` and `eps_std`."""
    return {"eps_mean": float(eps.mean()), "eps_std": float(eps.std(correction=0))}


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of correct predictions, detached; `y` class indices or soft labels."""
    labels = y if y.ndim == 1 else y.argmax(dim=1)
    return (logits.detach().argmax(dim=1) == labels).float().mean()
