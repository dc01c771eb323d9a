"""Does a value from a config fit the annotation of the argument it is meant for?"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any

from atbench.config.ranges import Range

_SCALARS = (bool, int, float, str)


def fits(value: Any, parameter: inspect.Parameter, target: Callable[..., Any]) -> bool:
    """False where the annotation is one of plain values and `value` is surely none; True wherever that cannot be told.

    An int is a float, but a bool is no int, and "8" no number: what is written in a config is what is meant.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # checked as a node of its own
    return _fits(value, _annotation(parameter, target))


def spelled(parameter: inspect.Parameter, target: Callable[..., Any]) -> str:
    """The annotation in the words of a message: "a number", "one of 'zero', 'uniform'"."""
    return " or ".join(dict.fromkeys(_words(_annotation(parameter, target))))


def wants_mapping(parameter: inspect.Parameter, target: Callable[..., Any]) -> bool:
    """Whether the annotation is a Mapping: settings, not the object that they could be built into."""
    origin = typing.get_origin(_annotation(parameter, target))
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is Annotated:
        plain, *marks = typing.get_args(wanted)
        return _fits(value, plain) and all(value in mark for mark in marks if isinstance(mark, Range))
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if wanted is None or wanted is type(None):
        return value is None
    if wanted is Any:
        return True
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted in (bool, str):
        return isinstance(value, wanted)
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return _fits_all(value, [option for option in typing.get_args(wanted) if option is not ...])
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and _fits_all(list(value.values()), [typing.get_args(wanted)[1]])
    if value is None or isinstance(value, _SCALARS):
        # Something else than a plain value is wanted, such as a Tensor; a class can say no, anything looser cannot.
        return not inspect.isclass(wanted) or wanted is inspect.Parameter.empty or isinstance(value, wanted)
    return True


def _fits_all(values: Any, options: list[Any]) -> bool:
    if not isinstance(values, Collection) or isinstance(values, (str, Mapping)):
        return False
    return not options or all(any(_fits(value, option) for option in options) for value in values)


def _annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    wanted = parameter.annotation
    if not isinstance(wanted, str):
        return wanted
    # Argument by argument: get_type_hints gives up on all of them when one name exists for the type checker alone.
    for place in (getattr(target, "__init__", None), target):
        module = sys.modules.get(getattr(place, "__module__", None) or "")
        try:
            return eval(wanted, vars(module) if module else {})
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return inspect.Parameter.empty


def _words(wanted: Any) -> Iterator[str]:
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(wanted):
            yield from _words(option)
    elif origin is Annotated:
        plain, *marks = typing.get_args(wanted)
        yield next((mark.words for mark in marks if isinstance(mark, Range)), next(_words(plain)))
    elif origin is typing.Literal:
        yield f"one of {', '.join(repr(choice) for choice in typing.get_args(wanted))}"
    elif origin is not None:
        inner = [option for option in typing.get_args(wanted) if option is not ...]
        group = "a mapping" if inspect.isclass(origin) and issubclass(origin, Mapping) else "a list"
        yield f"{group} of {' or '.join(_words(inner[-1]))}" if inner else group
    else:
        known = {
            float: "a number",
            int: "an integer",
            bool: "true or false",
            str: "a text",
            type(None): "null",
            None: "null",
        }
        yield known.get(wanted, getattr(wanted, "__name__", str(wanted)))
