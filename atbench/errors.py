"""Exceptions with one-line messages (key, value, reason, fix), and their exit codes."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE)
# How torch says it where the class does not: on the CPU, and in CUDA's libraries.
_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
_SHOWN = 24  # names that still fit on a terminal's line or two
_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` most likely stands for, or None where nothing is close."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return names[close[0]] if close else None


def hint(word: str, known: Iterable[str]) -> str:
    """The fix in a message: the closest known name, else all known names."""
    names = sorted(set(known))
    near = nearest(word, names)
    if near is not None:
        return f"did you mean '{near}'?"
    if not names:
        return "there is nothing to choose from"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"known: {', '.join(names[:_SHOWN])}{more}"


class AtbenchError(Exception):
    """An expected failure. Its message is shown without a traceback: `<key>: <value> — <why>; <what to do>`."""

    exit_code = 1

    def __init__(self, key: str, value: object, why: str, fix: str) -> None:
        self.key, self.value, self.why, self.fix = key, value, why, fix
        super().__init__(f"{key}: {value} — {why}; {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their message otherwise, which is not what __init__ takes: workers send theirs home.
        return type(self), (self.key, self.value, self.why, self.fix)


class ConfigError(AtbenchError):
    """A setting that cannot be run."""

    exit_code = 2


def refuse_unknown(key: str, value: object, known: Sequence[str], what: str = "choice") -> None:
    """Raise ConfigError for a value that is none of the known names."""
    if value not in known:
        raise ConfigError(key, value, f"there is no such {what}", f"use one of {', '.join(known)}")


class DataError(AtbenchError):
    """A data set or checkpoint that is absent, damaged or not what it should be."""

    exit_code = 3


class NumericalError(AtbenchError):
    """Loss or weights that are no longer numbers."""

    exit_code = 4


class EnvironmentFault(AtbenchError):
    """The machine cannot do it: disk full, folder not writable, a device that is not there."""

    exit_code = 5


class Interrupted(AtbenchError):
    """Stopped on purpose between two steps, with a checkpoint: time box (75), SIGINT (130), SIGTERM (143)."""

    def __init__(self, exit_code: int, key: str, value: object, why: str, fix: str) -> None:
        super().__init__(key, value, why, fix)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.exit_code, self.key, self.value, self.why, self.fix)


def exit_code(error: BaseException) -> int:
    """The exit code of a program that ends with `error`."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    known = expected(error)
    return known.exit_code if known else 1


def expected(error: BaseException) -> AtbenchError | None:
    """The AtbenchError that an exception is, or stands for where the machine failed: memory, a disk, another process of
    the run. None for a bug.
    """
    if isinstance(error, AtbenchError):
        return error
    message, kind = (str(error).strip().splitlines() or [""])[0], type(error).__name__
    from_torch = isinstance(error, RuntimeError)
    if out_of_memory(error):
        fix = "make train.batch_size, eval.batch_size or the network smaller"
        return EnvironmentFault("memory", "exhausted", message or kind, fix)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return EnvironmentFault("memory", "exhausted", message, "leave other programs less of it")
    if isinstance(error, OSError) and error.errno in _DISK:
        return EnvironmentFault(
            "disk", error.filename or "a file", str(error.strerror), "make room, or make it writable"
        )
    together = os.environ.get("WORLD_SIZE", "1") != "1"
    if together and from_torch and (kind.startswith("Dist") or _mentions(error, _PEER)):
        rank = f"rank {os.environ.get('RANK', '?')}"
        return EnvironmentFault(
            "processes", rank, f"has lost another one ({message})", "the run goes on with resume=RUN"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory or the device's was too small."""
    from_torch = isinstance(error, RuntimeError) and _mentions(error, _MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or from_torch


def _mentions(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)
