"""The command line as the user typed it, the folders whose Python files it makes trusted, and lines to type next."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from atbench.config.instantiate import trust_folders
from atbench.errors import ConfigError

_ARGV = "ATBENCH_ARGV"


def remember_argv(argv: list[str], config_dir: Path | None) -> None:
    """Note what the user typed, and trust the Python files that go with it: those of the current folder, and those
    beside the folder of configs. In the environment, so that a launcher's worker knows it as well.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError("--config-dir", config_dir, "there is no such folder", "correct the path")
    os.environ[_ARGV] = json.dumps(argv)
    trust_folders(Path.cwd(), *([config_dir.absolute().parent] if config_dir is not None else []))


def as_typed() -> list[str]:
    """The words that the user typed after `atbench`, unchanged; empty where the program was not started from a line."""
    return [str(word) for word in json.loads(os.environ.get(_ARGV, "[]"))]


def shell_line(*words: object) -> str:
    """`atbench WORDS` as one line that a shell reads back as these words."""
    return " ".join(_shell_quoted(str(word)) for word in ("atbench", *words))


def _shell_quoted(word: str) -> str:
    """Double quotes around the single ones of Hydra's strings are easier to read than what shlex makes of them."""
    readable = "'" in word and not set(word) & set('"$`\\!')
    return f'"{word}"' if readable else shlex.quote(word)
