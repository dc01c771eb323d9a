"""Model card of an exported network: accuracies with n and interval, audit, and code that loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atbench.config.tree import select
from atbench.reporting.console import bound_line
from atbench.reporting.document import Block, Code, Document, Facts, Heading, Notice, Paragraph, table
from atbench.reporting.leaderboard import was_audited
from atbench.reporting.results import robustness_unknown
from atbench.reporting.wording import both_forms, interval, norm_name, options_text, percent


def build_model_card(config: Mapping[str, Any], record: Mapping[str, Any], export: Mapping[str, Any]) -> Document:
    """The card. `export` is config.json."""
    model = select(config, "model.about.name") or select(config, "model._target_")
    blocks = [
        *_verdict(record),
        Facts(tuple(_facts(config, record, export))),
        Heading("Accuracy"),
        Paragraph(bound_line(record)),
        table(("attack", "accuracy", "95 % interval", "n"), _accuracies(record)),
        Heading("Load the model"),
        Paragraph("In this folder, with safetensors, torch and the imported packages installed:"),
        Code(export["python"], "python"),
        Heading("Evaluate the model"),
        Code(export["command"]),
    ]
    return Document(f"{model} for {export['dataset']}", tuple(blocks))


def _verdict(record: Mapping[str, Any]) -> Iterator[Block]:
    audit = record["audit"]
    if not was_audited(record):
        yield Notice("The evaluation was not audited.")
    else:
        yield (Paragraph if audit["trusted"] else Notice)(f"Audit: {audit['sentence']}")
    for check in audit["checks"]:
        if check["verdict"] == "flag":
            yield Notice(f"{check['name']}: {check['sentence']}")


def _facts(
    config: Mapping[str, Any], record: Mapping[str, Any], export: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    shape = "×".join(str(side) for side in export["input"]["shape"])
    yield (
        "network",
        f"{options_text(export['model']) or select(config, 'model._target_')}; {export['parameters']:,} parameters",
    )
    yield "input", f"{shape}, pixels in [0, 1]; normalised inside"
    yield "output", f"logits of {len(export['classes'])} classes"
    for key in ("name", "formula", "paper"):
        if value := select(config, f"method.about.{key}"):
            yield "method" if key == "name" else key, str(value)
    if "method" not in config:
        yield "trained", "elsewhere; evaluated here"
    if record["epoch"] is not None:
        yield "checkpoint", f"{record['checkpoint']}, epoch {record['epoch']}"
    yield "threat", f"{norm_name(record['threat']['norm'])}, ε = {both_forms(record['threat']['eps'])}"
    yield "weights, SHA-256", str(record["weights_sha256"])
    yield "test data, SHA-256", str(record["data_sha256"])


def _accuracies(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    def row(name: str, figure: Mapping[str, Any]) -> tuple[str, ...]:
        return name, percent(figure["accuracy"]), interval(figure["low"], figure["high"]), str(record["n"])

    yield row("none", record["clean"])
    for step in record["steps"]:
        yield row(f"PGD-{step['k']}", step)
    for attack in record["attacks"]:
        name = attack["name"] if attack["alone"] else f"after {attack['name']}"
        yield row(f"{name} ({options_text(attack['settings'])})", attack["alone"] or attack["after"])
    if not robustness_unknown(record):
        yield row("worst case of all", record["robust"])
        yield row("worst case, adversarial images in 8 bits", record["robust"]["eight_bit"])
    for name, figure in record["norms"].items():
        yield row(f"PGD-{figure['k']}, {norm_name(name)}, ε = {both_forms(figure['eps'])}", figure)
