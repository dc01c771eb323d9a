"""`atbench bench`: the arguments of its kinds, checked before torch is imported."""

from __future__ import annotations

import importlib

from atbench.bench import KINDS
from atbench.cli.verbs import Parser
from atbench.config import registry
from atbench.errors import refuse_unknown


def main(words: list[str]) -> int:
    if words[:1] == ["plan"]:  # its words are those of a training
        importlib.import_module("atbench.config.argv").remember_argv(["bench", *words], None)
        return int(importlib.import_module("atbench.bench.plan").plan(words[1:]))
    parser = Parser("atbench bench", description="Speed of this machine and of atbench on it, beside other tools.")
    kinds = "; ".join(f"{name}: {kind.summary}" for name, kind in KINDS.items())
    kinds += "; plan: what a training would take (`atbench bench plan --help`)"
    parser.add_argument("kind", metavar="KIND", help=kinds)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (1)")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of every tool; default: of the kind's own")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="parts of the kind")
    parser.add_argument("--methods", default="", metavar="NAME,NAME", help="of train: speed and memory of these alone")
    given = parser.parse_intermixed_args(words)
    refuse_unknown("bench", given.kind, [*KINDS, "plan"], "kind")
    if given.kind == "plan":
        parser.error("plan comes first: atbench bench plan ...")
    parts, methods = names(given.only), names(given.methods)
    for part in parts:
        refuse_unknown("bench --only", part, KINDS[given.kind].parts, f"part of bench {given.kind}")
    if methods:
        refuse_unknown("bench --methods", given.kind, ["train"], "kind with methods")
    for method in methods:
        refuse_unknown("bench --methods", method, registry.options("method", [registry.conf_dir()]), "method")
    for option, value in (("--threads", given.threads), ("--rounds", given.rounds)):
        if value is not None and value < 1:
            parser.error(f"argument {option}: must be at least 1")
    run = importlib.import_module("atbench.bench.run").run
    run(given.kind, parts, given.device, given.threads, given.rounds, methods, given.json)
    return 0


def names(listed: str) -> tuple[str, ...]:
    return tuple(filter(None, listed.split(",")))
