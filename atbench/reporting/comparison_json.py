"""Comparison as JSON: accuracies in [0, 1], and every value behind every mean."""

from __future__ import annotations

from typing import Any

from atbench.reporting.columns import HEADLINE_STEPS, Column
from atbench.reporting.comparison import Comparison, Row, Spread
from atbench.reporting.run_folder import CHECKPOINTS


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """`headline`: the attacks that `drop` is measured under, null where the rows have none in common. `robust` of a row
    is the worst case over that row's own `attacks` and not comparable with a row of others.
    """
    columns = comparison.columns
    return {
        "schema": 2,
        "headline": columns.words or None,
        "rows": [_row_json(row, columns.headline) for row in comparison.rows],
        "unreadable": [{"folder": str(path), "why": reason} for path, reason in comparison.unreadable],
    }


def _row_json(row: Row, headline: Column | None) -> dict[str, Any]:
    def spread(value: Spread | None) -> dict[str, Any] | None:
        return None if value is None else {"mean": value.mean, "std": value.std, "values": list(value.values)}

    evaluations = [e for run in row.counted for e in run.evaluations.values()]
    return {
        "method": row.method, "dataset": row.dataset, "model": row.model, "plus": list(row.plus),
        "norm": row.norm, "eps": row.eps, "differs": row.differs, "seeds": row.seeds,
        "most_steps": row.most_steps, "bound": sorted({e.bound for e in evaluations}),
        "attacks": sorted({e.basis for e in evaluations}),
        "flags": sorted({flag for e in evaluations for flag in e.audit["flags"]}),
        **{
            name: {
                "clean": spread(row.figure(name, lambda e: e.clean)),
                "pgd20": spread(row.figure(name, lambda e: e.steps.get(HEADLINE_STEPS))),
                "pgd_max": spread(row.figure(name, lambda e: e.steps.get(row.most_steps or 0))),
                "robust": spread(row.robust(name)),
            }
            for name in CHECKPOINTS
        },
        "drop": spread(row.drop(headline)), "train_seconds": spread(row.train_seconds),
        "collapsed": [{"seed": seed, "best": best, "last": last} for seed, best, last in row.collapsed],
        "runs": [str(run.path) for run in row.counted],
        "left_out": [
            {"run": str(run.path), "seed": run.seed, "state": run.state, "why": reason} for run, reason in row.left_out
        ],
    }  # fmt: skip
