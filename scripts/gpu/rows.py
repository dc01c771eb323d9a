"""Real trainings on CIFAR-10, the most important first, as `make repro-...` makes them: results/short/<row>.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atbench.reporting.reproduction import read_result
from atbench.reporting.results import read_evaluation
from scripts.gpu.session import ROOT, Session
from scripts.repro import TOLD_DONE, Job, Runner, autoattack_words
from scripts.repro_rows import HOW, Row, table1
from scripts.table_runs import run_atbench

SPEEDRUN = Row("speedrun", ("experiment=speedrun", "eval=standard"))  # AutoAttack runs by itself, behind it
FIRST = 1000  # test images that the speedrun is attacked on before all are
#: The survey's Table 1 in its short tier: first what every other row is compared with, and single-step training beside
#: it; then other losses, other searches and other radii, each family's best known first; ensembles and other networks
#: or data sets last, since they cost most or compare with little.
ORDER = (
    *("pgd_at", "trades", "mart", "fast_at", "free_at", "fat", "grad_align", "alp", "yopo", "mma"),
    *("dynamic_at", "iaat", "he", "llr", "feature_scatter", "avmixup", "rst", "uat_pp", "cat_curriculum"),
    *("cat_customized", "bat", "fgsmr", "kim_interval", "ait", "atda", "tla", "sads", "sat_r", "rotation_ss", "pass"),
    *("adt_exp_am", "adp", "gal", "dverge"),
)
#: What tries the script: two trainings of seconds.
TINY = ("dataset=digits", "threads=1", "model.width=2", "attack.steps=2", "train.epochs=1", "train.optimizer.lr=0.02")
FIRST_NAME = "autoattack-first"


def rows(session: Session) -> None:
    """Make what is missing. What failed in a call before is tried again."""
    stage = session.stage("rows")
    stage["cells"] = {name: cell for name, cell in stage["cells"].items() if "error" not in cell}
    tier = "smoke" if session.smoke else "short"
    results = session.folder / "results" if session.smoke else ROOT / "results"
    runner = Runner(tier, (0,), session.runs, session.data_dir, results)
    if session.smoke:
        speedrun, others = Row("speedrun", ("method=liet", *TINY)), [Row("pgd_at", ("method=pgd_at", *TINY))]
    else:
        short = table1(tier)
        speedrun, others = SPEEDRUN, [short[name] for name in ORDER]
    whole = {row.key: row for row in (speedrun, *others)}
    first = f"speedrun on {FIRST} images"

    def measure(cell: str) -> dict[str, Any]:
        return attacked_first(runner, speedrun) if cell == first else made(runner, whole[cell])

    session.fill("rows", [first, *whole], measure)


def made(runner: Runner, row: Row) -> dict[str, Any]:
    """Train and attack a row, or go on with it, and write its JSON."""
    if (told := runner.attempt(Job(0, (row,)))) != TOLD_DONE:
        raise RuntimeError(told)
    runner.write(row)
    result = read_result(runner.results / runner.tier / f"{row.key}.json")
    (seed,) = result.record["seeds"]
    found: dict[str, Any] = {"clean": result.clean.mean, result.pgd.name: result.pgd.mean}
    if result.autoattack:
        low, high = result.autoattack.interval
        found |= {"AutoAttack": result.autoattack.mean, "low": low, "high": high, "n": result.autoattack.n}
    return found | {"epochs": seed["epochs"], "training s": seed["train_seconds"]}


def attacked_first(runner: Runner, row: Row) -> dict[str, Any]:
    """Train a row, or go on with it, and attack it on the FIRST test images alone."""
    told, run = runner.trained(row, 0)
    if run is None:
        raise RuntimeError(told)
    file = run / "evaluation" / FIRST_NAME / f"{HOW[runner.tier].checkpoint}.json"
    if not file.exists():
        whole = ("eval.name=", "eval.limit=")
        words = [word for word in autoattack_words(row, runner.tier, run) if not word.startswith(whole)]
        words += [f"eval.limit={FIRST}", f"eval.name={FIRST_NAME}"]
        if (told := run_atbench(runner.home(row, 0), ["eval", str(run), *words])) != TOLD_DONE:
            raise RuntimeError(told)
    return figures(file)


def figures(file: Path) -> dict[str, Any]:
    """Accuracies in the record of an evaluation."""
    record = read_evaluation(file).record
    robust = record["robust"]
    found = {"clean": record["clean"]["accuracy"], "AutoAttack": robust["accuracy"], "n": record["n"]}
    return found | {"low": robust["low"], "high": robust["high"]}
