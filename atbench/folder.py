"""The run folder: written so that nothing half-written ever stands under a real name, and owned by one process at a
time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atbench.errors import EnvironmentFault, NumericalError, exit_code

EVALUATION, EARLIER, PARTS = "evaluation", "earlier", "parts"


def write_bytes(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Write aside, sync, rename; with `previous` the old file is moved there first. Raises EnvironmentFault if the disk
    refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise EnvironmentFault(
            "disk", path, f"{len(data)} bytes could not be written ({error.strerror})", "make room"
        ) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} if there is no such file."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def record_places(folder: Path) -> list[Path]:
    """Where evaluation records may stand: `evaluation/`, and folders of the names of further evaluations beneath."""
    top = folder / EVALUATION
    return [top, *sorted(each for each in top.glob("*") if each.is_dir() and each.name not in (EARLIER, PARTS))]


def complete(place: Path) -> list[Path]:
    """The complete records in one of these."""
    return sorted(path for path in place.glob("*.json") if not path.stem.endswith(".partial"))


def record_files(folder: Path) -> list[Path]:
    """All complete records, those of `evaluation/` itself first."""
    return [path for place in record_places(folder) for path in complete(place)]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def fresh(parent: Path, name: str) -> Path:
    """A folder of its own for a new run: `<parent>/<date>-<time>-<name>`, numbered where that is taken."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for count in range(1000):
        path = parent / (stem if count == 0 else f"{stem}-{count + 1}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise EnvironmentFault(
                "runs", parent, f"cannot be written ({error.strerror})", "set runs=FOLDER"
            ) from error
    raise EnvironmentFault("runs", parent, f"already holds a thousand folders called {stem}", "set name=NAME")


def set_status(folder: Path, **fields: Any) -> None:
    """Merge fields into status.json."""
    path = folder / "status.json"
    write_json(path, {**read_json(path), **fields})


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run folder. A second owner is refused; the lock of a process that is gone is taken over."""
    lock = folder / "lock"
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": now(), "boot": _birth(os.getpid())}
    for _ in range(3):
        try:
            with lock.open("x") as file:
                file.write(json.dumps(mine))
            break
        except FileExistsError:
            try:
                other = read_json(lock)
            except ValueError:
                other = {}
            if _alive(other):
                who = f"process {other.get('pid')} on {other.get('host')} since {other.get('started')}"
                raise EnvironmentFault("run", folder, f"is in use by {who}", "wait for it, or stop it") from None
            lock.unlink(missing_ok=True)
            time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@contextmanager
def accounted(folder: Path) -> Iterator[None]:
    """Hold the folder while the work in it runs, and write into its status how the work ended, if it did not end
    well; that it did is for the caller to say.
    """
    with owned(folder):
        set_status(folder, state="running", started=now(), exit_code=None, message="", ended=None)
        try:
            yield
        except BaseException as error:
            code = exit_code(error)
            state = "diverged" if isinstance(error, NumericalError) else "interrupted" if code >= 75 else "failed"
            set_status(folder, state=state, exit_code=code, message=str(error) or type(error).__name__, ended=now())
            raise


def _birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks, so that a re-used pid is not taken for the owner; "" where
    unknown.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(owner: dict[str, Any]) -> bool:
    if not owner.get("pid"):
        return False
    if owner.get("host") != socket.gethostname():
        return True  # it cannot be asked: believe the lock
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _birth(int(owner["pid"])) == owner.get("boot", "")
