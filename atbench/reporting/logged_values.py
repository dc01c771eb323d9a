"""What is logged of rows and records: scalars of an epoch, accuracies of a record, attacks as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atbench.reporting.results import attack_basis
from atbench.reporting.wording import flatten

#: Numbers of a row that are no measurement: positions, sizes, and what another one says as well.
_NO_CURVES = frozenset({"epoch", "epochs", "step", "fraction", "seconds", "n", "k"})
COLUMNS = ("checkpoint", "attack", "eps", "k", "n", "accuracy", "low", "high")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of a row of metrics.jsonl by name, `val/pgd`; of the watch for collapses as `watch/pgd`."""
    place = "watch/" if row.get("event") == "watch" else ""
    return {
        f"{place}{key}": value
        for key, value in flatten(row, "/").items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key.rpartition("/")[2] not in _NO_CURVES
    }


def summary_values(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Summary values of a record. An attack's own accuracy where it ran on all; `after` it where it ran on the rest."""
    yield from (("clean", record["clean"]["accuracy"]), ("robust", record["robust"]["accuracy"]))
    yield "robust_8bit", record["robust"]["eight_bit"]["accuracy"]
    yield "robust_is", attack_basis(record)
    yield from ((f"pgd-{entry['k']}", entry["accuracy"]) for entry in record["steps"])
    for attack in record["attacks"]:
        kind = "alone" if attack["alone"] else "after"
        yield f"{kind}/{attack['name']}", attack[kind]["accuracy"]
    yield from ((f"norm/{norm}", entry["accuracy"]) for norm, entry in record["norms"].items())
    if reject := record.get("reject"):
        shares = ("tpr", "fpr", "accepted", "adversarial", "error", "robust_error")
        yield from ((f"reject/{name}", reject[name]["share"]) for name in shares)
        yield from ((f"reject/{name}", reject[name]) for name in ("threshold", "auc"))
    if unforeseen := record.get("unforeseen"):
        each = {attack["name"]: attack["uar"] for attack in unforeseen["attacks"]} | {"mean": unforeseen["muar"]}
        yield from ((f"uar/{name}", uar["uar"]) for name, uar in each.items() if uar)
    if record["audit"]["checks"]:
        yield "audit/trusted", record["audit"]["trusted"]
        yield "audit/flags", ", ".join(record["audit"]["flags"]) or "none"


def attack_rows(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Attack, ε, k, n, accuracy and interval, one row for each robust accuracy of a record."""

    def row(attack: str, eps: float, k: int | None, entry: Mapping[str, Any], n: int = record["n"]) -> list[Any]:
        return [attack, eps, k, n, *(entry[key] for key in ("accuracy", "low", "high"))]

    eps = record["threat"]["eps"]
    for entry in (*record["steps"], *record["eps"]):
        yield row("pgd", entry.get("eps", eps), entry["k"], entry)
    for attack in record["attacks"]:
        yield row(f"after {attack['name']}", eps, None, attack["after"])
    for norm, entry in record["norms"].items():
        yield row(f"pgd {norm}", entry["eps"], entry["k"], entry)
    members = record.get("members") or {"robust": []}
    for i, entries in enumerate(members["robust"]):
        for j, entry in enumerate(entries):
            name, own = f"pgd on member {i}, member {j} evaluated", members["attack"]
            yield row(name, own["eps"], own["steps"], entry, members["n"])
    unforeseen = record.get("unforeseen") or {"attacks": ()}
    for attack in unforeseen["attacks"]:
        for entry in attack["sizes"]:
            yield row(f"{attack['name']} ({attack['unit']})", entry["eps"], unforeseen["steps"], entry)
