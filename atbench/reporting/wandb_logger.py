"""W&B mirror of a run: never prompts, never raises, and costs at most about ten seconds without a server.

Mode, in this order: `logger.mode`, `WANDB_MODE`, online with credentials, else offline. An online start that fails
becomes offline, one that hangs turns the mirror off. After the first failure of a running mirror it is off until the
process ends, for wandb's service does not come back within a process.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from atbench.config.tree import select
from atbench.errors import ConfigError
from atbench.reporting.headline import compute_headline
from atbench.reporting.logged_values import COLUMNS, attack_rows, scalars, summary_values
from atbench.reporting.run_folder import read_evaluations
from atbench.runs.run_dir import EVALUATION, read_json, write_text

MODES = ("online", "offline", "disabled")
_REACH = 2.0  # seconds to reach the server
_START = 7.0  # seconds for an online start
_FINISH = 8.0  # seconds for what is still to be sent at the end

Result = TypeVar("Result")

_broken = False  # set by the first failure, for the whole process


class WandbLogger:
    """One open W&B run; the first call that fails prints a warning and turns off the rest."""

    def __init__(self, run: Any, checkpoint: Path | None = None) -> None:
        self._run, self._checkpoint = run, checkpoint
        # The axis of every curve. The summary has the selected epoch's figures in place of the last one's.
        self._guarded(lambda: run.define_metric("*", step_metric="epoch"))
        self._guarded(lambda: run.define_metric("val/*", step_metric="epoch", summary="none"))

    def log(self, row: Mapping[str, Any]) -> None:
        """The measurements of a row of metrics.jsonl under the same names, `val/pgd`, at its epoch."""
        values = scalars(row)
        self._guarded(lambda: self._run.log({"epoch": row.get("epoch"), **values}, step=row["step"]))
        if row.get("best"):
            best = {key: value for key, value in values.items() if key.startswith("val/")}
            self._guarded(lambda: self._run.summary.update({"best/epoch": row["epoch"], **best}))

    def summary(self, records: Sequence[Mapping[str, Any]], pictures: Sequence[Path], place: str = "") -> None:
        """Accuracies and the audit's verdict as summary values, all attacks as one table, charts, the pictures; the
        best checkpoint as an artifact if it was asked for. place: before every name.
        """
        self._guarded(lambda: _within(_FINISH, lambda: self._summary(records, pictures, place)))

    def _summary(self, records: Sequence[Mapping[str, Any]], pictures: Sequence[Path], place: str) -> None:
        import wandb  # in sys.modules already: this mirror is open

        for record in records:
            for name, value in summary_values(record):
                self._run.summary[f"{place}{record['checkpoint']}/{name}"] = value
        rows = [[record["checkpoint"], *row] for record in records for row in attack_rows(record)]
        media: dict[str, Any] = {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures}
        for key, x, title in (("steps", "k", "PGD steps"), ("eps", "eps", "eps")):
            if drawn := [record for record in records if record[key]]:
                media[f"{place}accuracy against {x}"] = wandb.plot.line_series(
                    xs=[[entry[x] for entry in record[key]] for record in drawn],
                    ys=[[entry["accuracy"] for entry in record[key]] for record in drawn],
                    keys=[str(record["checkpoint"]) for record in drawn],
                    title=f"Robust accuracy against {title}",
                    xname=x,
                )
        self._run.log({**media, f"{place}evaluation": wandb.Table(columns=list(COLUMNS), data=rows)})
        if self._checkpoint is not None and self._checkpoint.is_file():
            artifact = wandb.Artifact(f"{self._run.id}-best", type="model")
            artifact.add_file(str(self._checkpoint))
            self._run.log_artifact(artifact, aliases=["best"])

    def headline(self, folder: Path) -> None:
        """The worst case over all evaluations of a run's checkpoints, `best/headline`."""
        figures = {name: compute_headline(found).accuracy for name, found in read_evaluations(folder).items()}
        values = {f"{name}/headline": accuracy.value for name, accuracy in figures.items() if accuracy}
        self._guarded(lambda: self._run.summary.update(values))

    def close(self, exit_code: int) -> None:
        """Finish the run; what was not sent in time is in the run folder, for `wandb sync`."""
        self._guarded(lambda: _within(_FINISH + 2, lambda: self._run.finish(exit_code=exit_code)))

    def _guarded(self, call: Callable[[], object]) -> None:
        global _broken
        if _broken:
            return
        try:
            call()
        except Exception as fault:  # a failing mirror must not stop a run
            _broken = True
            _print(f"warning: W&B failed and is now off ({_short(fault)}); metrics.jsonl has everything")


def open_wandb(
    folder: Path, logger: Mapping[str, Any] | None, config: Mapping[str, Any], name: str, group: str | None
) -> WandbLogger | None:
    """The mirror of the logger's node, or None. Prints its mode and the reason to stderr."""
    global _broken
    if not logger or not logger.get("project") or _broken:
        return None
    mode, why = _requested_mode(logger)
    if mode == "disabled":
        return None
    try:
        settings = _quiet_settings()
        mode, why = (mode, why) if mode == "offline" else _reachable(mode, why)
        names = [select(config, f"{part}.about.name") for part in ("dataset", "model", "method")]
        kwargs = {
            "project": logger["project"], "entity": logger.get("entity"), "config": config, "dir": str(folder),
            "tags": list(dict.fromkeys([*(logger.get("tags") or ()), *(each for each in names if each)])),
            "group": logger.get("group") or os.environ.get("WANDB_RUN_GROUP") or group,
            "job_type": logger.get("job_type") or "train",
            "name": name, "id": _identity(folder),
            "settings": settings,
        }  # fmt: skip
        run, mode, why = _start(kwargs, mode, why)
        write_text(folder / "wandb" / "id", run.id)  # under the agent of a W&B sweep it is the agent's
    except Exception as fault:  # as in `_guarded`
        _broken = True
        _print(f"warning: W&B did not start and is off ({_short(fault)}); metrics.jsonl has everything")
        return None
    hint = f"; later: wandb sync {folder / 'wandb' / 'offline-run-*'}" if mode == "offline" else ""
    _print(f"W&B: {mode} ({why}){hint}")
    return WandbLogger(run, folder / "checkpoints" / "best.pt" if logger.get("artifact") else None)


def log_evaluation(
    folder: Path, logger: Mapping[str, Any] | None, config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Send the records of a later evaluation to the W&B run that training opened, if it opened one. Names of another
    evaluation than the run's first begin with its own: `auto/best/robust`.
    """
    if not (folder / "wandb" / "id").is_file():
        return
    if (mirror := open_wandb(folder, logger, config, folder.name, None)) is None:
        return
    first = read_json(folder / EVALUATION / f"{records[0]['checkpoint']}.json").get("name")
    place = "" if records[0].get("name") == first else f"{records[0]['name']}/"
    mirror.summary(records, sorted((folder / "pictures").glob("*.png")), place)
    mirror.headline(folder)
    mirror.close(0)


def wandb_mode(logger: Mapping[str, Any]) -> tuple[str, str]:
    """The mode of a run with this logger's node, and the reason; never prompts, waits a few seconds at most."""
    mode, why = _requested_mode(logger)
    if mode == "disabled":
        return mode, why
    _quiet_settings()
    return (mode, why) if mode == "offline" else _reachable(mode, why)


def _requested_mode(logger: Mapping[str, Any]) -> tuple[str | None, str]:
    """The mode that `logger.mode` or WANDB_MODE sets, and which of them; None if neither does."""
    mode = logger.get("mode")
    if mode is not None:
        if mode not in MODES:
            raise ConfigError("logger.mode", mode, "there is no such mode", f"use one of {', '.join(MODES)}, or null")
        return str(mode), f"logger.mode={mode}"
    variable = os.environ.get("WANDB_MODE")
    if not variable:
        return None, ""
    known = variable in MODES
    return (variable, f"WANDB_MODE={variable}") if known else ("offline", f"WANDB_MODE={variable} is not a mode")


def _reachable(mode: str | None, why: str) -> tuple[str, str]:
    """Online with credentials and a reachable server; never prompts, waits at most `_REACH`."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return "offline", f"{why}, but not logged in" if mode else "not logged in"
    host, port = _server(wandb.setup().settings.base_url)
    try:
        _within(_REACH, lambda: socket.create_connection((host, port), timeout=_REACH).close())
    except OSError:
        return "offline", f"{host} cannot be reached"
    return "online", why or "logged in"


def _server(base_url: str) -> tuple[str, int]:
    """Host and port that a request to W&B connects to first: the server, or the proxy before it."""
    url = urlsplit(base_url)
    proxy = getproxies().get(url.scheme)
    if proxy and url.hostname and not proxy_bypass(url.hostname):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _quiet_settings() -> Any:
    """Silent settings; kwargs to wandb's setup as well, for its login prints otherwise."""
    import wandb  # 2.6 s: only runs that have a mirror pay for it

    # wandb reads its variables itself, and stops at an empty one and at a mode that it does not know.
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    if os.environ.get("WANDB_MODE", MODES[0]) not in MODES:
        os.environ["WANDB_MODE"] = "offline"  # as `_requested_mode` takes it
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        init_timeout=_START,
        finish_timeout=_FINISH,
    )
    wandb.setup(settings=settings)
    return settings


def _start(kwargs: Mapping[str, Any], mode: str, why: str) -> tuple[Any, str, str]:
    """The opened run; offline where online did not work."""
    import wandb

    # A previous job of a sweep in this process may still be open; "finish_previous" closes it.
    if mode == "online":
        try:
            run = _within(_START, lambda: wandb.init(**kwargs, mode="online", resume="allow", reinit="finish_previous"))
            return run, mode, why
        except TimeoutError:
            raise  # that attempt waits in wandb's service, which can neither be shared nor ended quickly
        except Exception as fault:  # as in `_guarded`
            _print(f"warning: W&B could not go online ({_short(fault)}); the mirror stays offline")
            mode, why = "offline", "online failed"
            # The attempt still holds the run's id in wandb's service: only a new service is free of it.
            _within(_REACH, wandb.teardown)
            wandb.setup(settings=kwargs["settings"])
    return wandb.init(**kwargs, mode="offline", reinit="finish_previous"), mode, why


def _identity(folder: Path) -> str:
    """The id in the run folder of a resumed run, else that of a W&B sweep's agent, else a new one, not drawn from a
    seeded generator.
    """
    path = folder / "wandb" / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    agents = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return kept or agents or secrets.token_hex(4)


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of `call`, or TimeoutError: wandb limits only some of its waits, and DNS none."""
    box: list[Result] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            box.append(call())
        except BaseException as fault:  # handed to the caller's thread below
            faults.append(fault)

    thread = threading.Thread(target=work, daemon=True, name="wandb-mirror")
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not box:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return box[0]


def _short(fault: BaseException) -> str:
    """The first line of an exception, with its class."""
    return f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}".rstrip(": ")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
