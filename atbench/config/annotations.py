"""Checks of config values against the type annotations of the arguments that they are for."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any

from atbench.config.ranges import Range

#: Plain types: what a value of each may be, and what it is called.
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}


def fits(value: Any, parameter: inspect.Parameter, target: Callable[..., Any]) -> bool:
    """Whether `value` fits the annotation; True where that cannot be decided.

    Strict: an int is a float, but true is no int and "8" is no number.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # checked as a node of its own
    return _fits(value, _annotation(parameter, target))


def describe(parameter: inspect.Parameter, target: Callable[..., Any]) -> str:
    """The annotation in words: "a number", "one of 'zero', 'uniform'"."""
    return " or ".join(dict.fromkeys(_describe(_annotation(parameter, target))))


def expects_mapping(parameter: inspect.Parameter, target: Callable[..., Any]) -> bool:
    """Whether the annotation is a Mapping, which takes a node with `_target_` as it is, not built."""
    origin = typing.get_origin(_annotation(parameter, target))
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _fits(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if origin is Annotated:
        plain, *metadata = typing.get_args(annotation)
        return _fits(value, plain) and all(value in each for each in metadata if isinstance(each, Range))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is Any:
        return True
    if annotation in _PLAIN:  # true is an int to Python
        return isinstance(value, _PLAIN[annotation][0]) and isinstance(value, bool) == (annotation is bool)
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return _fits_all(value, [option for option in typing.get_args(annotation) if option is not ...])
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and _fits_all(list(value.values()), [typing.get_args(annotation)[1]])
    if value is None or isinstance(value, tuple(_PLAIN)):
        # Annotated with something else than a plain value, such as a Tensor: only a class can refuse.
        return not inspect.isclass(annotation) or annotation is inspect.Parameter.empty or isinstance(value, annotation)
    return True


def _fits_all(values: Any, options: list[Any]) -> bool:
    if not isinstance(values, Collection) or isinstance(values, (str, Mapping)):
        return False
    return not options or all(any(_fits(value, option) for option in options) for value in values)


def _annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    # Argument by argument: get_type_hints gives up on all of them when one name exists for the type checker alone.
    # A dataclass has arguments of its bases, whose annotations are those of other modules.
    for scope in (getattr(target, "__init__", None), *getattr(target, "__mro__", [target])):
        module = sys.modules.get(getattr(scope, "__module__", None) or "")
        try:
            return eval(annotation, vars(module) if module else {})
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return inspect.Parameter.empty


def _describe(annotation: Any) -> Iterator[str]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _describe(option)
    elif origin is Annotated:
        plain, *metadata = typing.get_args(annotation)
        yield next((each.description for each in metadata if isinstance(each, Range)), next(_describe(plain)))
    elif origin is typing.Literal:
        yield f"one of {', '.join(repr(choice) for choice in typing.get_args(annotation))}"
    elif origin is Callable:
        yield "a node with _target_"
    elif origin is not None:
        inner = [option for option in typing.get_args(annotation) if option is not ...]
        group = "a mapping" if inspect.isclass(origin) and issubclass(origin, Mapping) else "a list"
        yield f"{group} of {' or '.join(_describe(inner[-1]))}" if inner else group
    elif annotation in _PLAIN:
        yield _PLAIN[annotation][1]
    else:
        yield "null" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))
