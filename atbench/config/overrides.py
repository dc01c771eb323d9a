"""Parser of the words after `train` and `eval`: Hydra's options and overrides, in any order.

Hydra's own parser refuses options between overrides and answers a mistyped option with ten lines of usage; here it gets
one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atbench.config.renamed import KEYS, renamed_override
from atbench.errors import ConfigError, hint

_FLAGS = {
    "-h": "--help",
    "-m": "--multirun",
    "-r": "--run",
    "-sc": "--shell-completion",
    "--hydra-help": "--hydra-help",
    "--resolve": "--resolve",
}
_VALUED = {
    "-c": "--cfg",
    "-p": "--package",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-i": "--info",
}
_LONG = {**_FLAGS, **_VALUED, **{name: name for name in (*_FLAGS.values(), *_VALUED.values())}}
_TARGET = re.compile(r"[\w.]+\._target_=")
# Options that choose what is done; Hydra knows only one of them at a time.
_MODES = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")
_CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


class UnknownOption(ConfigError):
    """An option that Hydra does not have; the word after it, unless that is a setting or an option."""

    def __init__(self, option: str, following: str | None) -> None:
        super().__init__("option", option, "there is no such option", hint(option, set(_LONG.values())))
        self.option, self.following = option, following

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.option, self.following)


@dataclass
class CommandLine:
    """Hydra's options by their long names (a flag's value is None), the overrides in the order typed, and those of
    their keys that have been renamed."""

    options: dict[str, str | None] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The line in the one order that Hydra's parser accepts."""
        options = [word for name, value in self.options.items() for word in (name, value) if word is not None]
        return [*options, *self.overrides]

    @property
    def config_dir(self) -> Path | None:
        """The folder of the user's own configs, if one was named."""
        value = self.options.get("--config-dir")
        return None if value is None else Path(value).absolute()


def parse_words(words: Sequence[str]) -> CommandLine:
    """Sort the words after `train` or `eval`; keys of the version before get their new names. Raises ConfigError for an
    option that lacks its value, UnknownOption for one that there is not.
    """
    line, rest = CommandLine(), list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            word, old = renamed_override(word)
            line.overrides.append(word)
            if old:
                line.renamed[old] = KEYS[old]
            continue
        name, equals, value = word.partition("=")
        if name not in _LONG:
            following = rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else None
            raise UnknownOption(name, value if equals else following)
        name = _LONG[name]
        line.options[name] = (value if equals else _value(name, rest)) if name in _VALUED.values() else None
        if name in _CHOICES and (chosen := line.options[name]) not in _CHOICES[name]:
            raise ConfigError(name, chosen, "there is no such choice", hint(str(chosen), _CHOICES[name]))
    _check_modes(line)
    return line


def positional_target(line: CommandLine) -> None:
    """`eval RUN key=value`: the first override without `=` is the thing to evaluate, and becomes `target=RUN`."""
    for position, word in enumerate(line.overrides):
        deletion = word.startswith("~") and "/" not in word
        if "=" not in word and not deletion:
            line.overrides[position] = f"target={quoted(word)}"
            return


def allow_new_model_keys(line: CommandLine) -> None:
    """`eval model.key=value`: any key, also one that the composed configuration lacks."""
    line.overrides = [f"++{word}" if word.startswith("model.") else word for word in line.overrides]


def allow_new_targets(line: CommandLine) -> None:
    """`eval RUN model.module._target_=mine.Net`, `train resume=RUN method._target_=mine.Mine`: a class that the run's
    own configuration names, and that the composed one need not have a place for.
    """
    again = any(word.lstrip("+").startswith(("resume=", "target=", "verify=")) for word in line.overrides)
    if again and "--multirun" not in line.options:
        line.overrides = [f"++{word}" if _TARGET.match(word) else word for word in line.overrides]


def quoted(text: str) -> str:
    """`text` as one string of Hydra's override grammar, whatever characters a path may have."""
    if text and all(character.isalnum() or character in "/-_.+" for character in text):
        return text
    # A backslash counts as one there, unless it stands before a quote or at the end.
    inner = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{inner}'"


def setting(key: str, path: object) -> str:
    """The override that gives `key` a path."""
    return f"{key}={quoted(str(path))}"


def _value(name: str, rest: list[str]) -> str:
    if name == "--info" and (not rest or rest[0] not in _CHOICES[name]):
        return "all"
    if not rest or (rest[0].startswith("-") and rest[0] != "-"):
        raise ConfigError("option", name, "needs a value", f"write {name} VALUE")
    return rest.pop(0)


def _check_modes(line: CommandLine) -> None:
    modes = [name for name in _MODES if name in line.options]
    if len(modes) > 1:
        raise ConfigError("option", " ".join(modes), "exclude each other", "keep one of them")
    if "--resolve" in line.options and not {"--cfg", "--help"} & line.options.keys():
        raise ConfigError("option", "--resolve", "only shows a configuration", "write --cfg job --resolve")
