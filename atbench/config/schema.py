"""Schema of the run-level configuration keys, and the resolvers that configs may use."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from omegaconf import MISSING, OmegaConf

from atbench.errors import ConfigError

Number = Union[int, float, str]  # the text is a fraction such as 1/10, and a float once `resolve` has been through
FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


@dataclass
class Precision:
    """fp32 or bf16, apart for the search and for the update. `tf32`: whether fp32 is multiplied in TF32 on CUDA."""

    attack: str = "fp32"
    update: str = "fp32"
    tf32: bool = False


@dataclass
class ExtraData:
    """`labelled`: share of the training split that keeps labels (null: all); or `path`: further images, without labels,
    or with those of the file (`labels`), rows like any other then.

    `fraction`: the part that is drawn from either in a batch.
    """

    labelled: Optional[Number] = None
    path: Optional[str] = None
    labels: bool = False
    fraction: Number = 0.0


@dataclass
class Selection:
    """The best checkpoint is the best of PGD-`steps` on `n` held-out examples, measured `every` so many epochs.

    `norms`: other norms, at the data set's radii, under all of which an example has to hold. `networks`: where weights
    are averaged, the `average` alone, or `both`: each epoch the better of the average and the live network stands for
    it.
    """

    steps: int = 10
    n: int = 1000
    every: int = 1
    norms: list[str] = field(default_factory=list)
    networks: str = "average"


@dataclass
class Checkpoint:
    """When `last.pt` is written, besides after epochs: every so many minutes, and so many steps (null: not). A method
    whose tables of examples are over 100 MB has it after the first and the last epoch alone, and at these times.

    `every`: after so many epochs the network is kept as `epoch_<n>.pt`, to be evaluated (null: best and last alone).
    """

    minutes: Number = 5.0
    steps: Optional[int] = None
    every: Optional[int] = None


@dataclass
class GuardSection:
    """What a collapse of single-step training leads to: `warn`, `stop` or `rollback` (null: it is not watched).

    The watch: every so many steps PGD-`steps` on `n` held-out examples.
    """

    collapse: Optional[str] = "warn"
    every: int = 100
    n: int = 128
    steps: int = 10


@dataclass
class TrainSection:
    """The section `train`; a recipe fills it, the command line wins.

    `groups` overrides optimizer and schedule by parameter group; `weight_decay_on` is what weight decay acts on: `all`
    parameters, `weights` without biases and normalisation, or the kernels of `convolutions` alone. `label_smoothing` is
    that of the loss that is minimised, `attack_label_smoothing` that of searches which climb the cross-entropy of the
    labels (a search that climbs something else knows nothing of it). `margin` is subtracted from the label's cosine in
    the loss that is minimised (`model.head=hypersphere`). `capture`: whether searches of fixed steps run as CUDA
    graphs, which changes no value (`auto`: where there is CUDA). `compile`: torch.compile of the model, whose sums
    differ in their last digits. `micro_batch`: rows of a batch that go through the networks at once, whose gradients
    are accumulated (null: all). `shard`: whether the processes of torchrun share the model's weights, gradients and
    optimizer states out among them (FSDP2), instead of holding all of them each.
    """

    epochs: int = MISSING
    batch_size: int = MISSING
    micro_batch: Optional[int] = None
    optimizer: Any = MISSING
    schedule: Any = MISSING
    weight_decay_on: str = "all"
    groups: dict[str, Any] = field(default_factory=dict)
    clip_norm: Optional[Number] = None
    label_smoothing: Number = 0.0
    attack_label_smoothing: Number = 0.0
    margin: Number = 0.0
    precision: Precision = field(default_factory=Precision)
    channels_last: Any = "auto"
    capture: Any = "auto"
    compile: bool = False
    extra_data: ExtraData = field(default_factory=ExtraData)
    selection: Selection = field(default_factory=Selection)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    time_limit: Optional[Number] = None
    augment: bool = True
    shard: bool = False


@dataclass
class EvalSection:
    """The section `eval`; a preset fills it, the command line wins.

    norm, eps: null for what the network was trained for. `steps`: reported prefixes of one PGD trajectory, none for no
    sweep; `eps_grid`: multiples of ε, each with `eps_steps` steps. `attacks`: further ones in the same ball, by name;
    `sequential`: each attacks what the ones before left right. `norms`: other norms, at the data set's radii;
    `corruptions`: severities of all corruptions. `reject`: share of right predictions that stays accepted where unsure
    ones are rejected (null: nothing is), attacked with `reject_steps` from `reject_restarts` starts. `members`: whether
    each member of an ensemble is attacked and its images are judged by the others. `unforeseen`: distortions by name,
    `unforeseen_steps` each, at the sizes of the calibration `unforeseen_data` (null: the data set's own, or that of
    images of its size). `audit`: on how many examples the evaluation itself is examined. `examples`: whether
    adversarial images are kept. `limit`: so many test images, every class in proportion, always the same ones. `name`:
    under which this evaluation stands beside others of the same network (null: that of the preset).
    """

    about: Any = None
    norm: Optional[str] = None
    eps: Optional[Number] = None
    steps: list[int] = field(default_factory=list)
    restarts: int = 1
    objective: str = "ce"
    step_size: Optional[Number] = None
    eps_grid: list[Any] = field(default_factory=list)
    eps_steps: int = 20
    attacks: dict[str, Any] = field(default_factory=dict)
    sequential: bool = False
    norms: list[str] = field(default_factory=list)
    corruptions: list[int] = field(default_factory=list)
    reject: Optional[Number] = None
    reject_steps: int = 200
    reject_restarts: int = 4
    members: bool = True
    unforeseen: list[str] = field(default_factory=list)
    unforeseen_steps: int = 200
    unforeseen_data: Optional[str] = None
    audit: int = 0
    examples: bool = True
    batch_size: int = 512
    limit: Optional[int] = None
    name: Optional[str] = None
    checkpoints: list[str] = field(default_factory=lambda: ["best", "last"])


@dataclass
class Peer:
    """A figure of others for a survey's row, in percent: under which `attack`, and `of` which network, by whom.

    `tier`: the one that has its setting, in which ours must lie near it; null for none. `std`: in points, where it is
    known.
    """

    accuracy: float = MISSING
    attack: str = MISSING
    of: str = MISSING
    tier: Optional[str] = None
    std: Optional[float] = None


@dataclass
class Survey:
    """A row of the survey's Table 1 (Bai et al. 2021) as printed, `accuracy` in percent, and what it is about.

    `verdict`: OK, or what is wrong with the cell: MODEL, EPS, TRAIN_EPS (the radius of training), DATASET, ATTACK,
    NUMBER, BB (black-box), TGT (targeted). `corrected`: what the paper or its code really ran. `peer`: null for none.
    """

    row: int = MISSING
    model: str = MISSING
    attack: str = MISSING
    eps: Any = MISSING
    dataset: str = MISSING
    accuracy: float = MISSING
    verdict: str = MISSING
    corrected: str = MISSING
    peer: Optional[Peer] = None


@dataclass
class Experiment:
    """What an experiment says of itself. `epochs`: a tier's epochs of methods that cost more or less than most."""

    about: Any = None
    survey: Optional[Survey] = None
    epochs: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """All that `atbench train` reads; the groups are nodes of their own files."""

    seed: int = 0
    device: str = "auto"
    threads: Any = "auto"
    name: Optional[str] = None
    runs: str = "runs"
    data_dir: str = "data"
    resume: Optional[str] = None
    weights: Optional[str] = None
    dataset: Any = MISSING
    model: Any = MISSING
    attack: Any = MISSING
    method: Any = MISSING
    recipe: Any = None
    train: TrainSection = field(default_factory=TrainSection)
    plus: dict[str, Any] = field(default_factory=dict)
    guard: GuardSection = field(default_factory=GuardSection)
    eval: EvalSection = field(default_factory=EvalSection)
    logger: Any = MISSING
    experiment: Optional[Experiment] = None


@dataclass
class EvalConfig:
    """All that `atbench eval` reads; data set, its folder and model come from the run unless they are named.

    target: a run or a checkpoint of one; without it `model`, the weights in the file `checkpoint`, and `dataset` are
    attacked. name: of the folder that this makes. attack: one more attack besides those of `eval`. verify: a run whose
    records are to be computed again from the images that they kept. logger: null for W&B's run of the training.
    """

    target: Optional[str] = None
    verify: Optional[str] = None
    checkpoint: Optional[str] = None
    name: Optional[str] = None
    seed: int = 0
    device: str = "auto"
    threads: Any = "auto"
    runs: str = "runs"
    data_dir: Optional[str] = None
    dataset: Any = None
    model: Any = None
    attack: Any = None
    eval: EvalSection = field(default_factory=EvalSection)
    logger: Any = None


@functools.cache  # an eighth of a composition
def register() -> None:
    """Register the schemas and `${times:a,b}` with Hydra, once in a process."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig, package="_global_")
    store.store(name="eval_schema", node=EvalConfig, package="_global_")
    # omegaconf 2.4, which comes with Hydra 1.4, gives this function a name that was another function's until then.
    renamed = "replace" in inspect.signature(OmegaConf.register_resolver).parameters
    register_resolver: Callable[..., None] = OmegaConf.register_resolver if renamed else OmegaConf.register_new_resolver
    register_resolver("times", _times, replace=True)


def fraction(value: float | str) -> float:
    """A number, or a text such as "8/255", as a float."""
    match = FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return float(value)
    if float(match[2]) == 0:
        raise ConfigError("fraction", value, "divides by zero", "correct the number")
    return float(match[1]) / float(match[2])


def _times(first: float | str, second: float | str) -> float:
    try:
        return fraction(first) * fraction(second)
    except ValueError as error:
        raise ConfigError(
            "times", f"{first}, {second}", "is not a pair of numbers", "write numbers or fractions"
        ) from error
