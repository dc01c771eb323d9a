"""Building of objects from config nodes with `_target_`, checked against the allow-list and the target's signature."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atbench.config.allow_list import BuildRule, rule_for
from atbench.config.annotations import describe, expects_mapping, fits
from atbench.config.renamed import renamed_class
from atbench.errors import ConfigError, hint, nearest

# Keys of a node that the run reads itself: no arguments of the target.
READ_BY_RUN: Mapping[str, frozenset[str]] = {"model": frozenset({"members"})}
# What constructors raise where a setting does not suit them. No OSError: that is about the machine.
_CONSTRUCTOR_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AssertionError,
    AttributeError,
)
_NODE_KEYS = frozenset({"_target_", "_partial_", "about"})
_TRUSTED = "ATBENCH_TRUSTED"
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_RESERVED = frozenset({"atbench", "__main__"}) | sys.stdlib_module_names | frozenset(sys.builtin_module_names)


def trust_folders(*folders: Path) -> None:
    """Let targets be defined in Python files under these folders.

    Kept in the environment: the workers of a launcher or of torch are fresh processes that inherit nothing else. The
    folders go on Python's path with the first target that is in them: until then no file in them is ever run, whatever
    library it is called after.
    """
    known = trusted_folders()
    known += [folder for folder in dict.fromkeys(path.resolve() for path in folders) if folder not in known]
    os.environ[_TRUSTED] = os.pathsep.join(str(folder) for folder in known)


def trusted_folders() -> list[Path]:
    """The folders whose Python files may be imported."""
    return [Path(folder) for folder in os.environ.get(_TRUSTED, "").split(os.pathsep) if folder]


def build(node: Mapping[str, Any], path: str, /, **provided: Any) -> Any:
    """Build the object that `node` describes, from its own keys and the arguments that the program provides.

    Args:
        node: a resolved config node with `_target_`; `about` and the keys of READ_BY_RUN are dropped, nested nodes with
            `_target_` are built first (unless the argument is a Mapping by its annotation: that one gets the node), and
            `_partial_: true` gives a `functools.partial` instead of an object.
        path: where the node lies in the configuration ("method"), for the messages.
        provided: arguments that only the program has, such as the model and the attack.

    Raises ConfigError, naming the key and a near miss, for a target that may not be built or makes something else than
    is wanted at `path`, an unknown, missing or doubled argument, a value that does not fit the argument's
    annotation, and whatever its constructor refuses.
    """
    # Our own few lines rather than hydra.utils.instantiate: they know the path of the node and the signature, so that a
    # mistake gets one line with a near miss, and no allow-list hangs on a keyword that Hydra keeps renaming.
    target = check_target(node, path, provided)
    parameters = _parameters(target)
    arguments = {
        key: value if _is_data(value, parameters.get(key), target) else _value(value, f"{path}.{key}")
        for key, value in _options(node, path).items()
    }
    if node.get("_partial_"):
        made: Any = functools.partial(target, **arguments, **provided)
    else:
        _require_arguments(target, {*arguments, *provided}, path)
        with build_errors(node, path):
            made = target(**arguments, **provided)
    rule = rule_for(path)
    if rule and rule.types and not rule.partial and not isinstance(made, _types(rule)):
        raise _other_type(rule, f"{path}._target_", node["_target_"], f"makes a {type(made).__name__} and no")
    return made


@contextmanager
def build_errors(node: Mapping[str, Any], path: str) -> Iterator[None]:
    """Turn what the constructor of `node`, ours or torch's, raises in the block into a ConfigError that names key and
    value, or all settings where the message tells neither.
    """
    try:
        yield
    except _CONSTRUCTOR_ERRORS as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's: the machine, not the setting
            raise
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        options = {key: value for key, value in _options(node, path).items() if not isinstance(value, Mapping)}
        blamed = [key for key in options if re.search(rf"\b{re.escape(key)}\b", message)] or [
            key for key, value in options.items() if re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", message)
        ]
        target = str(node["_target_"])
        settings = ", ".join(f"{key}={value}" for key, value in options.items()) or "no settings"
        key, value = (f"{path}.{blamed[0]}", options[blamed[0]]) if len(blamed) == 1 else (path, settings)
        why = f"{target.rpartition('.')[2]} cannot be built ({type(error).__name__}: {message})"
        raise ConfigError(key, value, why, "correct the value; HYDRA_FULL_ERROR=1 shows where") from error


def check_target(node: Mapping[str, Any], path: str, provided: Collection[str] = ()) -> Callable[..., Any]:
    """The target of `node`, with every key checked to be an argument of it that fits. Builds nothing."""
    target = locate(str(node["_target_"]), f"{path}._target_")
    parameters = _parameters(target)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    options = _options(node, path)
    for name, value in {**dict.fromkeys(provided), **options}.items():
        if name in provided and name in options:
            raise ConfigError(f"{path}.{name}", value, "the program gives this argument itself", "leave it out")
        if name not in named and not open_ended:
            what = f"{target.__name__} takes no '{name}'"
            raise ConfigError(
                f"{path}.{name}", options.get(name, "given by the program"), what, hint(name, named - set(provided))
            )
        if name in named and name in options and not fits(value, parameters[name], target):
            what = f"{target.__name__} wants {describe(parameters[name], target)}"
            raise ConfigError(f"{path}.{name}", repr(value), what, "correct the value")
    return target


def locate(name: str, key: str) -> Callable[..., Any]:
    """The class or function called `name`, for the key `<path>._target_`. Raises ConfigError if there is none, none
    that a configuration may build there, or a class of another type.
    """
    rule, name = rule_for(key.removesuffix("._target_")), renamed_class(name)
    if rule is None:
        raise ConfigError(key, name, "nothing is built at this place of the configuration", "leave it out")
    if name not in rule.names and not _is_user_code(name.partition(".")[0]):
        # Before the import, because importing a module already runs it.
        raise _forbidden(name, key, rule)
    if name not in rule.names:
        sys.path += [str(folder) for folder in trusted_folders() if str(folder) not in sys.path]
    value = _import(name, key)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        raise ConfigError(key, name, "is neither a class nor a function", "name one")
    # On the object, not the name: what a file of the user's has imported (`mine.Path`) is not the user's.
    if name not in rule.names and not _is_user_code(value.__module__):
        raise _forbidden(name, key, rule)
    if rule.types and inspect.isclass(value) and not issubclass(value, _types(rule)):
        raise _other_type(rule, key, name, "is no")
    return value


def _import(name: str, key: str) -> Any:
    """The object at a dotted name, importing the longest module in it. Errors inside the user's module pass through."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise  # the module is there, and what it imports is not
            continue
        value: Any = module
        for position, part in enumerate(parts[cut:], start=cut):
            if not hasattr(value, part):
                where = ".".join(parts[:position])
                raise ConfigError(
                    key, name, f"{where} has no '{part}'", hint(part, [n for n in dir(value) if n[0] != "_"])
                )
            value = getattr(value, part)
        return value
    raise ConfigError(key, name, "there is no such module", "write package.module.Class")


def _types(rule: BuildRule) -> tuple[type, ...]:
    names = (name.rpartition(".") for name in rule.types)
    return tuple(getattr(importlib.import_module(module), name) for module, _, name in names)


def _other_type(rule: BuildRule, key: str, value: str, what: str) -> ConfigError:
    return ConfigError(key, value, f"{what} {' or '.join(rule.types)}", "name a class or function that makes one")


def _forbidden(name: str, key: str, rule: BuildRule) -> ConfigError:
    near = nearest(name, rule.names)
    fix = "name one of ours, or a class or function in a Python file in the current folder or beside --config-dir"
    return ConfigError(key, name, "a configuration may not build this here", f"did you mean '{near}'?" if near else fix)


def _is_user_code(module_name: str) -> bool:
    """Whether a module (found, not imported, where it is a top-level name) is a Python file in a trusted folder, or a
    folder of such files.
    """
    root = module_name.partition(".")[0]
    if root in _RESERVED:
        return False
    module = sys.modules.get(module_name)
    path = [*sys.path, *(str(folder) for folder in trusted_folders())]
    spec = module.__spec__ if module is not None else importlib.machinery.PathFinder.find_spec(root, path)
    if spec is None:
        return False
    if isinstance(spec.loader, importlib.machinery.SourceFileLoader) and spec.has_location and spec.origin:
        files = [spec.origin]
    else:
        files = [] if spec.origin else list(spec.submodule_search_locations or [])  # a folder without __init__.py
    return bool(files) and all(_in_trusted_folder(Path(file).resolve()) for file in files)


def _in_trusted_folder(file: Path) -> bool:
    # A virtual environment inside the current folder holds everybody's code, not the user's.
    installed = any(file.is_relative_to(place) for place in _INSTALLED) or "site-packages" in file.parts
    return not installed and any(file.is_relative_to(folder) for folder in trusted_folders())


def accepted_kwargs(node: Mapping[str, Any], path: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments among `offered` that the target of `node` accepts; all of them if it takes any."""
    parameters = _parameters(locate(str(node["_target_"]), f"{path}._target_"))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


def _options(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    dropped = _NODE_KEYS | READ_BY_RUN.get(path, frozenset())
    return {str(key): value for key, value in node.items() if key not in dropped}


def _is_data(value: Any, parameter: inspect.Parameter | None, target: Callable[..., Any]) -> bool:
    """Whether `value` is a node that the target asks for as it is, to have it built later."""
    node = isinstance(value, Mapping) and "_target_" in value
    return node and parameter is not None and expects_mapping(parameter, target)


def _value(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, path)
        return {key: _value(inner, f"{path}.{key}") for key, inner in value.items()}
    if isinstance(value, Collection) and not isinstance(value, (str, bytes)):
        return [_value(inner, f"{path}.{position}") for position, inner in enumerate(value)]
    return value


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # a class written in C tells nothing of its arguments: it checks them itself
        return {"": inspect.Parameter("_", inspect.Parameter.VAR_KEYWORD)}


def _require_arguments(target: Callable[..., Any], names: set[str], path: str) -> None:
    for name, parameter in _parameters(target).items():
        positional = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if positional and parameter.default is parameter.empty and name not in names:
            raise ConfigError(
                f"{path}.{name}", "nothing", f"{target.__name__} needs '{name}'", f"write +{path}.{name}=..."
            )
