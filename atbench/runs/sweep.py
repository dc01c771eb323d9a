"""The folder of a sweep: made before Hydra makes it, removed if the sweep is refused, reused if the sweep goes on.

Made here so that no two sweeps share one by chance, and so that a refused sweep removes only what it has made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from atbench.config.overrides import CommandLine, quoted
from atbench.config.renamed import renamed_override
from atbench.errors import ConfigError, DataError

RECORD = "multirun.yaml"  # Hydra's record of a sweep
_FOLDER = "hydra.sweep.dir="
_JOBS = "ATBENCH_JOBS"  # in the environment, so that a launcher's worker knows it: how many jobs, and the first one

_DONE = 2.0  # seconds within which a sweep that goes on passes over a job that is done

current: Path | None = None  # of the sweep of this process
_made: list[Path] = []  # folders made by the sweep of this process, topmost first
_records: dict[Path, bytes] = {}  # of an earlier sweep that this one goes on with: Hydra writes over it


class SweepFolder(Callback):
    """Hydra's callback (named in the primary configs) that makes the folder of the sweep: numbered where the name is
    taken, unless the line names it, which goes on with the sweep that is there.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _note_jobs(config)
        folder = Path(config.hydra.sweep.dir)
        named = any(word.startswith(_FOLDER) for word in config.hydra.overrides.hydra)
        if named and (record := folder / RECORD).is_file():
            _records[record] = record.read_bytes()
        for count in range(1000):
            path = folder.with_name(f"{folder.name}-{count + 1}") if count else folder
            if _new(path) or named:
                break
        global current
        current = path
        if path != folder:
            # The configuration of a job is composed anew, from the overrides.
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = str(path)
                config.hydra.overrides.hydra.append(f"{_FOLDER}{quoted(str(path))}")


def _note_jobs(config: DictConfig) -> None:
    """Note the jobs that Hydra's own sweeper will make of the line; another one decides as it goes."""
    os.environ.pop(_JOBS, None)
    if str(OmegaConf.select(config, "hydra.sweeper._target_")).endswith(".BasicSweeper"):
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        os.environ[_JOBS] = json.dumps([len(jobs), jobs[0]])


def job_line(number: int, words: Sequence[str], seconds: Sequence[float] = ()) -> str:
    """`job 3/6  seed=1  about 12 min left`: the words of a sweep's first job, numbered 0, and of a later one those in
    which it differs. seconds: what earlier jobs took; those that were done already count for nothing.
    """
    count, first = json.loads(os.environ.get(_JOBS, "[null, []]"))
    parts = [f"job {number + 1}{f'/{count}' if count else ''}"]
    parts += [" ".join(word for word in words if number == 0 or word not in first)]
    trained = [each for each in seconds if each >= _DONE]
    if count and trained:
        parts += [f"about {_rounded(sum(trained) / len(trained) * (count - number))} left"]
    return "  ".join(part for part in parts if part)


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _new(folder: Path) -> bool:
    """Make a folder and those above it; whether it was this call that made it."""
    while True:
        try:
            for path in (*reversed(folder.absolute().parents), folder.absolute()):
                if not path.is_dir():
                    path.mkdir()
                    _made.append(path)
            return bool(_made) and _made[-1] == folder.absolute()
        except FileExistsError:  # made by another just now: look again
            continue
        except FileNotFoundError:  # a refused sweep has just taken one of those above back
            _made[:] = [path for path in _made if path.is_dir()]


def reset() -> None:
    """Forget the sweep before this one in the same process."""
    global current
    current = None
    _made.clear()
    _records.clear()


def remove_refused_sweep() -> None:
    """Remove what a refused sweep left: its folders, as long as they hold nothing but Hydra's record of the sweep; and
    put back the record of the sweep that it was to go on with.
    """
    for folder in reversed(_made):
        if {path.name for path in folder.iterdir()} - {RECORD}:
            break
        (folder / RECORD).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError:  # another sweep has begun in it
            break
    for path, content in _records.items():
        path.write_bytes(content)
    reset()


def continue_sweep(line: CommandLine) -> None:
    """`-m resume=SWEEP`: in its place the words that the sweep was started with, and its folder. Raises DataError for
    a folder that is of no sweep, ConfigError for recorded words that only the user may say.
    """
    word = next((word for word in line.overrides if word.lstrip("+").startswith("resume=")), None)
    folder = Path(word.partition("=")[2].strip("'\"")) if word else None
    if word is None or folder is None or "," in str(folder) or (folder / "config.yaml").is_file():
        return
    recorded = _recorded(folder)
    for override in recorded:
        name, _, value = override.partition("=")
        if ("_target_" in override or "${oc." in value) and override not in line.overrides:
            why = "names code, or reads the environment, and stands only in the sweep's own record"
            raise ConfigError(name, value, why, f"say it again: atbench train -m {word} {quoted(override)}")
    typed = [other for other in line.overrides if other != word]
    line.overrides = [
        *(override for override in recorded if override not in typed),
        *typed,
        f"{_FOLDER}{quoted(str(folder))}",
    ]


def _recorded(folder: Path) -> list[str]:
    path = folder / RECORD
    if not path.is_file():
        why = f"is not the folder of a sweep: it has no {RECORD}"
        raise DataError("resume", folder, why, "name one under runs/sweeps/, or leave -m out for a run")
    try:
        overrides = yaml.safe_load(path.read_bytes())["hydra"]["overrides"]
        words = [renamed_override(str(word))[0] for word in (*overrides["hydra"], *overrides["task"])]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError("resume", path, "is damaged", f"say the sweep's words again, and {_FOLDER}{folder}") from error
    return [word for word in words if not word.startswith((_FOLDER, "hydra.mode="))]


def sweep_folder() -> Path | None:
    """The folder of the sweep that this job belongs to: its runs lie in it, and it is their W&B group."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def job_overrides() -> list[str]:
    """The words of this job: of a run those that were typed, in a sweep those of one combination."""
    return [str(word) for word in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []
