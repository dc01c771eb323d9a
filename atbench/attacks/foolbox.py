"""foolbox's attacks as an `Attack` (Rauber et al. 2017, arXiv 1707.04131; 2020, JOSS 5(53)).

This is the one module that imports foolbox.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from atbench.attacks.base import Attack, Target
from atbench.attacks.norms.lp_ball import ball
from atbench.config.annotations import describe, fits
from atbench.config.ranges import AnyCount, NotNegative
from atbench.errors import ConfigError, hint
from atbench.models import attack_mode
from atbench.runs.seeding import ExampleDraws, derive_seed, seed_global

#: What foolbox writes before the name of an attack for one norm, in lower case.
PREFIXES = {"linf": ("linfinity", "linf"), "l2": ("l2",), "l1": ("l1",)}
#: Attacks that need more than images and labels: a target class, other images, an adversarial image.
UNFIT = frozenset({"GenAttack", "DatasetAttack", "BinarizationRefinementAttack"})
#: Modules of foolbox.attacks without gradients: query attacks, and those that only add noise.
QUERIES = frozenset({"blur", "boundary_attack", "contrast", "contrast_min", "hop_skip_jump", "inversion", "pointwise"})
NOISE = frozenset({"additive_noise", "blended_noise", "saltandpepper"})
#: The message of a decision-based attack that found no misclassified starting point for some image of a batch.
NO_START = "init_attack failed"


class Foolbox(Attack):
    """One attack of foolbox's, by its name there: `attack=foolbox attack.name=DeepFool`.

    The name goes with or without the norm in front and "Attack" behind (`PGD`, `LinfPGD`, `L2DeepFoolAttack`), in any
    case, and the norm is that of the evaluation. Attacks of no norm in particular (`Inversion`) measure in it.

    What foolbox draws comes from the global generators of torch and NumPy, at once for the whole batch. They are
    seeded from `rng` for each batch and put back afterwards: the same batches give the same answers, but where an
    attack draws, an answer depends on the batch that its example is in. The default draws nothing.

    minimal: true for what foolbox calls a MinimizationAttack; `eps` does not bound its answers.
    access: `queries` or `noise` for attacks that use no gradient, else `gradient`.

    Args:
        name: of a class in `foolbox.attacks`.
        steps: that class's own argument; None is its default.
        options: further arguments of the class.

    Raises ConfigError where foolbox is not installed, has no such attack for the norm, or the attack no such option.
    """

    #: Holds for every attack of foolbox; an instance has its own.
    access: ClassVar[str] = "queries"

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        name: str,
        steps: AnyCount | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(norm, eps, 1 if steps is None else steps)
        self.foolbox = _foolbox()
        kind = self._kind(name)
        self.attack = self._built(kind, name, {**({} if steps is None else {"steps": steps}), **(options or {})})
        module = kind.__module__.rpartition(".")[2]
        # Per instance here; class attributes elsewhere.
        self.minimal = isinstance(self.attack, self.foolbox.attacks.base.MinimizationAttack)  # type: ignore[misc]
        self.access = "queries" if module in QUERIES else "noise" if module in NOISE else "gradient"  # type: ignore[misc]

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        model = self.foolbox.PyTorchModel(_TargetModule(target).eval(), bounds=(0, 1), device=x.device)
        with (
            attack_mode(target.network, "eval"),
            _seeded(derive_seed(rng.seed, *rng.stream, "foolbox", int(rng.index[0])), x.device),
        ):
            x_adv = self._run(model, x, y)
        # Where an attack divided by a gradient of zero its image is NaN.
        sound = torch.isfinite(x_adv.flatten(1)).all(dim=1)
        return torch.where(sound.view(-1, *[1] * (x.ndim - 1)), x_adv, x)

    def _run(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        kwargs = {} if self.minimal else {"epsilon": self.eps}
        try:
            x_adv: Tensor = self.attack.run(model, x, self.foolbox.criteria.Misclassification(y), **kwargs)
        except ValueError as error:
            if NO_START not in str(error):
                raise
            if len(x) == 1:
                return x
            # foolbox raises for the whole batch where one image fails.
            half = len(x) // 2
            return torch.cat([self._run(model, x[rows], y[rows]) for rows in (slice(half), slice(half, None))])
        return x_adv.to(x.dtype)

    def _kind(self, name: str) -> type:
        """The class called `name`, of those for this norm."""
        known = {
            label: kind
            for label, kind in vars(self.foolbox.attacks).items()
            if inspect.isclass(kind) and kind.__name__ not in UNFIT and self._measures(kind)
        }
        bare = self._bare(name)
        matches = {kind for label, kind in known.items() if self._bare(label) == bare}
        if len(matches) != 1:
            why = f"foolbox has no attack of this name for {self.norm}"
            raise ConfigError("attack.name", name, why, hint(name, [*known, *map(self._short, known)]))
        return matches.pop()

    def _measures(self, kind: Any) -> bool:
        """Whether a class attacks in this norm."""
        base = self.foolbox.attacks.base
        if not issubclass(kind, base.AttackWithDistance) or inspect.isabstract(kind):
            return False
        if issubclass(kind, base.FlexibleDistanceMinimizationAttack):
            return True
        if "constraint" in inspect.signature(kind).parameters:  # HopSkipJump has no distance until it is built
            return self.norm in ("linf", "l2")
        p = getattr(kind.distance, "p", None)  # a property without one in the noise attacks: their names tell
        return p == ball(self.norm).p if p is not None else kind.__name__.lower().startswith(PREFIXES[self.norm])

    def _short(self, label: str) -> str:
        """A name without the norm in front and without "Attack" behind."""
        prefix = next((prefix for prefix in PREFIXES[self.norm] if label.lower().startswith(prefix)), "")
        return label[len(prefix) :].removesuffix("Attack")

    def _bare(self, label: str) -> str:
        return self._short(label).lower().removesuffix("attack")

    def _built(self, kind: type, name: str, kwargs: dict[str, Any]) -> Any:
        parameters = inspect.signature(kind).parameters
        for key, value in kwargs.items():
            where = "attack.steps" if key == "steps" else f"attack.options.{key}"
            if key not in parameters:
                raise ConfigError(where, value, f"foolbox's {kind.__name__} takes no '{key}'", hint(key, parameters))
            if not fits(value, parameters[key], kind):
                what = f"foolbox's {kind.__name__} wants {describe(parameters[key], kind)}"
                raise ConfigError(where, repr(value), what, "correct the value")
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in kwargs:
                where = "attack.steps" if key == "steps" else f"attack.options.{key}"
                raise ConfigError(where, "nothing", f"foolbox's {kind.__name__} needs '{key}'", f"write +{where}=...")
        own = {"distance": getattr(self.foolbox.distances, self.norm), "constraint": self.norm}
        try:
            return kind(**{**{key: value for key, value in own.items() if key in parameters}, **kwargs})
        except ImportError as error:
            why = f"foolbox's {kind.__name__} needs {error.name}, which is not installed"
            raise ConfigError("attack.name", name, why, f"pip install {error.name}") from error


class _TargetModule(nn.Module):
    """`target.logits` in the form that foolbox takes. The network is no submodule, so its mode does not change."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.logits = target.logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators at `seed` within the block; NumPy's is put back here, torch's by `attack_mode`."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    seed_global(seed, device)
    try:
        yield
    finally:
        np.random.set_state(before)


def _foolbox() -> Any:
    try:
        import foolbox
    except ImportError as error:
        why = f"{error.name} is not installed"
        raise ConfigError("attack", "foolbox", why, "pip install atbench[foolbox]") from error
    return foolbox
