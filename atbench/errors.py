"""Refusals: one line that names key, value, reason and fix, and the exit code that a script can rely on."""

from __future__ import annotations


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
    """What a program that ends with `error` returns."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, AtbenchError) else 1
