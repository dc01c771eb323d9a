"""Atomic writes, lock and status of the run directory."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from atbench.errors import ConfigError, DataError, EnvironmentFault, NumericalError, exit_code, expected

#: What the program writes into a run folder.
RUN_FILES = (
    "as_typed.yaml", "checkpoints", "config.yaml", "environment.json", "evaluation", "export", "lock", "metrics.csv",
    "metrics.jsonl", "pictures", "report.html", "report.md", "stages", "status.json", "tables", "tensorboard", "wandb",
)  # fmt: skip

EVALUATION, EARLIER, PARTS = "evaluation", "earlier", "parts"


@contextmanager
def atomic_file(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its place, synced, when the block ends; with `previous` the old file is
    moved there first. A block that raises leaves the old file. Raises EnvironmentFault if the disk refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)  # a killed process of the same number left it, or it is a link that leads away
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        aside.replace(path)
    except OSError as error:
        raise EnvironmentFault("disk", path, f"could not be written ({error.strerror})", "make room") from error
    finally:  # a full disk, or a signal
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically, as an `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} if there is no such file. Raises DataError for a file that is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError("file", path, f"is no JSON ({error})", "restore it from a copy, or remove it") from error
    if not isinstance(content, dict):
        raise DataError("file", path, "holds no JSON object", "restore it from a copy, or remove it")
    return content


def record_folders(folder: Path) -> list[Path]:
    """The folders of evaluation records: `evaluation/`, and below it one for each further evaluation, by its name."""
    top = folder / EVALUATION
    return [top, *sorted(each for each in top.glob("*") if each.is_dir() and each.name not in (EARLIER, PARTS))]


def complete_records(folder: Path) -> list[Path]:
    """The complete records in one of these folders."""
    return sorted(path for path in folder.glob("*.json") if not path.stem.endswith(".partial"))


def list_records(folder: Path) -> list[Path]:
    """All complete records, those of `evaluation/` itself first."""
    return [path for each in record_folders(folder) for path in complete_records(each)]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_dir(parent: Path, name: str) -> Path:
    """A folder of its own for a new run: `<parent>/<date>-<time>-<name>`, numbered where that is taken.

    Raises ConfigError for a name that would lead elsewhere, EnvironmentFault where there is no writing.
    """
    refuse_path("name", name)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for count in range(1000):
        path = parent / (stem if count == 0 else f"{stem}-{count + 1}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
            raise EnvironmentFault("runs", parent, why, "set runs=FOLDER") from error
    raise EnvironmentFault("runs", parent, f"already holds a thousand folders called {stem}", "set name=NAME")


def refuse_path(key: str, name: str) -> None:
    """Raise ConfigError for a name of a file or folder that would lead elsewhere."""
    if any(sign in name for sign in ("/", "\\", "\0")):
        raise ConfigError(key, name, "is a path and not the name of one file or folder", "leave the slashes out")


def refuse_links(folder: Path) -> None:
    """Raise DataError for a symbolic link among what a run writes in its folder: it would be followed, and what it
    leads to cut off or written over. The folder itself may be one.
    """
    for name in RUN_FILES:
        top = folder / name
        # In `wandb` it is W&B that writes, and that makes links of its own.
        below = os.walk(top) if name != "wandb" and top.is_dir() and not top.is_symlink() else ()
        inside = (Path(parent) / entry for parent, folders, files in below for entry in (*folders, *files))
        if link := next((path for path in (top, *inside) if path.is_symlink()), None):
            raise DataError("run", link, "is a symbolic link", "put what it leads to in its place")


def set_status(folder: Path, **fields: Any) -> None:
    """Merge fields into status.json."""
    path = folder / "status.json"
    write_json(path, {**read_json(path), **fields})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; `lock` in it names the owner. Raises EnvironmentFault if another process has it.

    The lock is the kernel's, on `.lock`, and ends with its owner. A `lock` written on another machine counts as well:
    not every shared disk has locks across machines.
    """
    lock = folder / "lock"
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(folder / ".lock", timeout=0))
        except Timeout:
            raise _in_use(folder) from None
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
            raise EnvironmentFault("run", folder, why, "make it writable") from error
        if read_json(lock).get("host", socket.gethostname()) != socket.gethostname():
            raise _in_use(folder)
        write_json(lock, {"pid": os.getpid(), "host": socket.gethostname(), "started": now()})
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def _in_use(folder: Path) -> EnvironmentFault:
    owner: dict[str, Any] = {}
    with suppress(DataError):
        owner = read_json(folder / "lock")
    known = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('started')}"
    fix = f"wait for it, or stop it; if it is gone, remove {folder / 'lock'}"
    return EnvironmentFault("run", folder, f"is in use by {known if owner else 'another process'}", fix)


@contextmanager
def status_recorded(folder: Path) -> Iterator[None]:
    """Lock the folder while the block runs, and write into its status how the block failed, if it did; success is
    for the caller to write.
    """
    with locked(folder):
        set_status(folder, state="running", started=now(), exit_code=None, message="", ended=None)
        try:
            yield
        except BaseException as error:
            code = exit_code(error)
            state = "diverged" if isinstance(error, NumericalError) else "interrupted" if code >= 75 else "failed"
            with suppress(EnvironmentFault):  # a full disk: what ended the work says more
                message = str(expected(error) or error) or type(error).__name__
                set_status(folder, state=state, exit_code=code, message=message, ended=now())
            raise
