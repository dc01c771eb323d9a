"""Every option of `model` shows all that its network can be built with."""

from __future__ import annotations

import inspect

import pytest

from atbench.config import registry
from atbench.config.instantiate import locate
from tests.support.nets import option

NAMES = registry.options("model", [registry.conf_dir()])
FROM_DATASET = {"shape", "classes", "mean", "std"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_constructor_argument_is_a_key_that_can_be_set_without_plus(name: str) -> None:
    node = option(name)
    arguments = inspect.signature(locate(str(node["_target_"]), "model._target_")).parameters.keys() - FROM_DATASET
    changed = option(name, *(f"model.{argument}=other" for argument in (*arguments, "members")))
    assert changed == node | dict.fromkeys((*arguments, "members"), "other")


@pytest.mark.parametrize("name", NAMES)
def test_an_option_keeps_its_own_description(name: str) -> None:
    """Options are built on one another; what one says of itself is not what it is built on."""
    about = option(name)["about"]
    assert about == registry.about(registry.conf_dir() / "model" / f"{name}.yaml", "model")
