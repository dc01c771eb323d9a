"""The command line: verbs, error reporting and exit codes. Hydra and torch are imported when needed.

`train` and `eval` are Hydra applications, so overrides, `-m` sweeps, `--cfg job`, `--config-dir` and shell completion
are Hydra's; the other verbs are plain argparse (`verbs.py`). Every expected failure ends in one line on stderr:
`error: key: value — why; what to do`.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from atbench import __version__
from atbench.cli.verbs import PLAIN
from atbench.cli.workflow import workflow
from atbench.config import registry
from atbench.config.hydra_errors import added_key_error, composition_error, is_composition_error, option_error
from atbench.config.overrides import (
    CommandLine,
    UnknownOption,
    allow_new_model_keys,
    allow_new_targets,
    parse_words,
    positional_target,
)
from atbench.errors import ConfigError, Interrupted, exit_code, expected, hint

USAGE = """\
atbench: adversarial training, one formula at a time

  atbench train [key=value ...]         train and evaluate      atbench train dataset=digits method=trades seed=1
  atbench train -m key=a,b [...]        every combination       atbench train -m method=pgd_at,trades seed=0,1,2
  atbench train resume=RUN              go on with a run        atbench train -m resume=SWEEP
  atbench eval RUN [key=value ...]      attack a trained model  atbench eval runs/NAME eval.restarts=5
  atbench eval model=NAME checkpoint=FILE dataset=NAME          attack anybody's network; or model._target_=mine.Net
  atbench report RUN [RUN ...]          report or compare runs  atbench report runs/* --out comparison
  atbench report table1                 the survey's table, remade    atbench report table1 results=results
  atbench predict RUN PICTURE           class, and whether it holds     atbench predict runs/NAME cat.png --eps 4/255
  atbench export RUN                    weights, card, entry    atbench export runs/NAME --out mine
  atbench list [KIND]                   what to choose from     atbench list methods --survey
  atbench doctor                        what this machine has and lacks
  atbench bench KIND                    how fast it is          atbench bench train --only floor,steps

`atbench VERB --help` says more; `atbench train --cfg job` shows a configuration without running it.
Tab completion: eval "$(atbench train -sc install=bash)"     Full tracebacks: HYDRA_FULL_ERROR=1
"""
VERBS = ("train", "eval", "report", "predict", "export", "list", "doctor", "bench")
_ENTRY = {"train": "train", "eval": "evaluate"}  # verb -> module of atbench.workflows, and its function
_TRACEBACKS = "ATBENCH_TRACEBACKS"  # the user's HYDRA_FULL_ERROR, for the workers of a launcher
_COMPLETION = ("-sc", "--shell-completion")


class _JobError(BaseException):
    """An exception on its way out of a Hydra job: Hydra holds back an Exception and adds lines of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _JobLog:
    """Jobs started by this call, in this process, what they returned and how long they took; those that failed, each as
    its line says and with its error.
    `full_tracebacks`: what the user set; the variable itself is then ours, to make Hydra raise.
    """

    def __init__(self) -> None:
        self.started, self.results, self.failures = 0, list[Any](), list[tuple[str, BaseException]]()
        self.seconds: list[float] = []
        self.full_tracebacks = os.environ.get(_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR")) == "1"


_jobs = _JobLog()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Leaves `sys.argv`, `sys.path` and the environment as they were."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as leave:  # argparse and Hydra end --help this way
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `atbench list | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _failed(error)


def results(words: Sequence[str]) -> list[Any]:
    """What the jobs of a command line returned. Raises what `main` would print."""
    _run(list(words))
    return list(_jobs.results)


def _run(words: list[str]) -> int:
    """The exit code of a command line; raises what went wrong."""
    _jobs.__init__()  # type: ignore[misc]
    with restored():
        try:
            return _dispatch(words)
        except _JobError as job:
            failure = job.error
        raise failure


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"atbench {__version__}")
        return 0
    if words[0] in _COMPLETION:
        return _complete(words)
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise ConfigError("atbench", verb, "there is no such verb", hint(verb, VERBS))
    if verb in _ENTRY:
        return _hydra(verb, rest, words)
    return PLAIN[verb](rest)


def _hydra(verb: str, rest: list[str], words: list[str]) -> int:
    """Hand a line to Hydra, which composes the configuration and calls the job, once or once for each combination."""
    try:
        line = parse_words(rest)
    except UnknownOption as unknown:
        raise option_error(unknown, verb, rest) from None
    for old, new in line.renamed.items():
        print(f"note: {old} is now {new}; the old name goes with the version after the next", file=sys.stderr)
    if verb == "eval" and "--shell-completion" not in line.options:
        positional_target(line)
        allow_new_model_keys(line)
    allow_new_targets(line)
    if "--multirun" in line.options and "RANK" in os.environ:
        why = "every rank would run the sweep"
        raise ConfigError("--multirun", "under torchrun", why, "start the sweep without torchrun")

    from hydra.core.global_hydra import GlobalHydra

    from atbench.config import argv, hydra_section, schema
    from atbench.runs import sweep

    argv.remember_argv(words, line.config_dir)
    schema.register()
    hydra_section.install_loader()
    sweep.reset()
    if "--multirun" in line.options:
        sweep.continue_sweep(line)
    folders = [registry.conf_dir(), *([line.config_dir] if line.config_dir else [])]
    # Hydra shows its program's name, and looks it up for completion; with the flag it raises instead of exiting.
    sys.argv = ["atbench", *line.words()]
    os.environ[_TRACEBACKS], os.environ["HYDRA_FULL_ERROR"] = str(int(_jobs.full_tracebacks)), "1"
    GlobalHydra.instance().clear()
    try:
        _application(verb)()
    except Exception as error:
        composing = not _jobs.started and is_composition_error(error)
        if not composing:
            _end_sweep(verb)
        if composing or isinstance(error, ConfigError):
            sweep.remove_refused_sweep()
        if not composing:
            raise
        choices = functools.partial(registry.options, folders=folders)
        raise composition_error(error, [verb, *line.words()], choices) from error
    finally:
        GlobalHydra.instance().clear()
    _end_sweep(verb)
    return 0


def _end_sweep(verb: str) -> None:
    """At the end of a sweep of trainings: the comparison of its runs, and the jobs that failed, with the cause."""
    from atbench.runs import sweep

    if verb == "train" and sweep.current and sweep.current.is_dir():
        importlib.import_module("atbench.reporting.report").report_sweep(sweep.current)
    for line, error in _jobs.failures if _jobs.started > 1 else ():
        print(f"failed: {line}: {expected(error) or repr(error)}", file=sys.stderr)


def _application(verb: str) -> Any:
    import hydra

    from atbench.config.compose import version_base

    return hydra.main(config_path=str(registry.conf_dir()), config_name=verb, **version_base())(
        {"train": _train, "eval": _eval}[verb]
    )


def _train(cfg: Any) -> float:
    return _job("train", cfg)


def _eval(cfg: Any) -> float:
    return _job("eval", cfg)


def _job(verb: str, cfg: Any) -> float:
    """One job; returns what a sweeper optimises. In a sweep a failure is printed, and the next job still runs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from atbench.config import instantiate
    from atbench.runs import sweep

    instantiate.trust_folders(*instantiate.trusted_folders())  # the worker of a launcher is a fresh process
    settings = HydraConfig.get()
    many = settings.mode == RunMode.MULTIRUN
    _jobs.started += 1
    typed = settings.overrides.task
    if many:
        print(sweep.job_line(settings.job.num, typed, _jobs.seconds), file=sys.stderr)
    began = time.monotonic()
    try:
        tree: Any = OmegaConf.to_container(cfg)
        if misplaced := added_key_error(typed, tree):
            raise misplaced
        _jobs.results.append(workflow(_ENTRY[verb])(cfg))
        return float(_jobs.results[-1])
    except Exception as error:
        if not many or (isinstance(error, Interrupted) and error.exit_code > 128):
            raise _JobError(error) from error  # a signal ends the sweep as well
        _print_error(error)
        _jobs.failures.append((sweep.job_line(settings.job.num, typed), error))
        raise
    finally:
        _jobs.seconds.append(time.monotonic() - began)


def _failed(error: BaseException) -> int:
    """Print the error, unless the sweep has done so already, and return the exit code."""
    if any(error is failure for _, failure in _jobs.failures):
        print(f"error: {len(_jobs.failures)} of {_jobs.started} jobs failed", file=sys.stderr)
    else:
        _print_error(error)
    return exit_code(error)


def _print_error(error: BaseException) -> None:
    """One line for an expected error, a traceback for any other. A ConfigError is printed by the first rank alone."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, ConfigError) and rank > 0:
        return
    known = expected(error)
    if known is None or _jobs.full_tracebacks:
        traceback.print_exception(error)
    if known is not None:
        print(f"error{f' (rank {rank})' if rank else ''}: {known}", file=sys.stderr)


def _complete(words: list[str]) -> int:
    """Answer the shell. Hydra's script calls the bare program, with the line in COMP_LINE: the verb is cut out here."""
    if "query=bash" not in words and "query=fish" not in words:
        return _hydra("train", words, words)  # install, uninstall
    program, _, typed = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    verb, space, rest = typed.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in VERBS if name.startswith(verb)))
    elif verb == "list":
        print(" ".join(name for name in registry.KINDS if name.startswith(rest)))
    elif verb in _ENTRY:
        # A run before the word that is being completed is no override; Hydra would give up on the line.
        whole, blank, last = rest.rpartition(" ")
        known = CommandLine(overrides=whole.split())
        if verb == "eval":
            positional_target(known)
        os.environ["COMP_LINE"] = " ".join([program, *known.overrides, last]) if blank else f"{program} {last}"
        return _hydra(verb, words, words)
    return 0


@contextmanager
def restored() -> Iterator[None]:
    """Put back what a verb changes of the process, so that a caller in the same process can go on."""
    argv, path, environment = sys.argv, list(sys.path), dict(os.environ)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        os.environ.clear()
        os.environ.update(environment)
