"""One page of the documentation for each method, from its docstring, its YAML and the tables in docs/."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from atbench.config.annotations import describe
from atbench.config.compose import compose
from atbench.config.registry import conf_dir

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 92  # a docstring's line that is shorter, though the next word would fit, ends there on purpose
EFFECTS = {
    "robust": "robust accuracy above chance and above clean training under PGD",
    "faint": "robust accuracy above chance and above clean training under PGD, but barely",
    "union": "robust accuracy above clean training under the worst of three norms",
    "transfer": "what fools one member fools the others less",
    "rejection": "adversarial images get too little confidence to be accepted",
    "clean": "clean accuracy",
}
_HEADING = re.compile(
    r"(^|(?<=\. ))(Cost|Inner|Outer|Sources?|Paper and code|Known weakness(?:es)?|Left by AutoAttack)\b"
)
_COST = re.compile(r"\*\*Cost\*\*:? ?(.+?)(?:\.(?:\s|$)|$)", re.DOTALL)


def names() -> list[str]:
    """All methods of conf/method."""
    return sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


def page(name: str) -> str:
    """The Markdown page of a method."""
    path = conf_dir() / "method" / f"{name}.yaml"
    text, node = path.read_text(encoding="utf-8"), method_node(name)
    tree = {key: value for key, value in yaml.safe_load(text).items() if key not in ("method", "defaults")}
    cls, about = _target(node["_target_"]), node["about"]
    prose, meanings = docstring(cls)
    parts = [
        f"# {name}",
        _escape(about["summary"][0].upper() + about["summary"][1:] + "."),
        f'<p class="formula">{html.escape(about["formula"])}</p>',
        _facts(name, about, node["_target_"], prose),
        "## The method",
        *_lead(text),
        *prose,
        *(part for other in _mentioned(cls) for part in (f"### {other.__name__}", *docstring(other)[0])),
        "## Options",
        _options(cls, node, meanings),
        *_settings(tree),
        "## Measured on digits",
        _measured(name),
        "## Against the authors' code",
        *_fidelity(name),
        f"## conf/method/{name}.yaml",
        f"```yaml\n{text.strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _lead(text: str) -> list[str]:
    """What a YAML says of its method above all settings: where settings make the method, the class does not."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines()[1:])
    said = " ".join(line.lstrip("# ") for line in lines)
    return [_escape(said)] if said else []


def method_node(name: str) -> dict[str, Any]:
    """The node `method` of a method's YAML; composed where it has its class from its defaults (he)."""
    node = yaml.safe_load((conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8"))["method"]
    if "_target_" not in node:
        node = OmegaConf.to_container(compose("train", [f"method={name}"]).method)
    assert isinstance(node, dict)
    return node


def _target(name: str) -> type:
    module, _, cls = name.rpartition(".")
    return getattr(import_module(module), cls)


# Docstrings.


def docstring(cls: type) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a class's docstring as Markdown, and what its Args say, by argument."""
    text, _, arguments = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    return [_paragraph(part) for part in text.strip().split("\n\n")], dict(_arguments(arguments))


def _mentioned(cls: type) -> list[type]:
    """Other classes of the same module that the docstring names."""
    words = re.findall(r"`(\w+)`", inspect.getdoc(cls) or "")
    found = [getattr(import_module(cls.__module__), word, None) for word in dict.fromkeys(words)]
    return [other for other in found if inspect.isclass(other) and other is not cls]


def _paragraph(text: str) -> str:
    """Prose with the line breaks that were meant: around a formula, an indented part, a point or a heading."""
    lines = text.splitlines()
    out = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        words, indented = following.split(), following.startswith(" ")
        meant = bool(words) and (
            len(line) + 1 + len(words[0]) <= WIDTH
            or indented != line.startswith(" ")
            or following.startswith("- ")
            or bool(re.match(_HEADING, following))
        )
        out.append(_HEADING.sub(r"**\2**", _escape(line.strip())) + ("  " if meant else ""))
    return "\n".join(out)


def _escape(text: str) -> str:
    """Plain text as Markdown; `code` stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """`name: meaning` of each argument; `a, b: meaning` counts for both."""
    for entry in re.split(r"\n(?=    \S)", "\n" + text.rstrip()):
        together, colon, meaning = " ".join(entry.split()).partition(": ")
        if colon:
            yield from ((name, meaning) for name in together.split(", "))


# Tables.


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _facts(name: str, about: dict[str, Any], target: str, prose: list[str]) -> str:
    module = target.rpartition(".")[0].replace(".", "/")
    paper = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", _escape(about["paper"]))
    cost = next(
        (" ".join(found[1].split()) for part in prose if (found := _COST.search(part))),
        "3 forward passes a batch, no attack",
    )
    commands = [f"`atbench train method={name}`"]
    if (conf_dir() / "experiment" / "paper" / f"{name}.yaml").exists():
        commands.append(f"`atbench train experiment=paper/{name}` (the authors' recipe)")
    rows = {
        "Paper": paper,
        "Source": f"{about['status']} ([what that means](../methods.md))",
        "Family": about["family"] + ("; in the survey of Bai et al. 2021" if about.get("survey") else ""),
        "Cost": cost,
        "Has to show": EFFECTS[about["effect"]],
        "Run": "<br>".join(commands),
        "Class": f"`{target.rpartition('.')[2]}` in `{module}.py`",
    }
    return _table(["", ""], [[f"**{key}**", value] for key, value in rows.items()])


def _options(cls: type, node: dict[str, Any], meanings: dict[str, str]) -> str:
    """Every argument of the constructor: its key, default, range and meaning."""
    rows = []
    for name, parameter in list(inspect.signature(cls).parameters.items()):
        if name in ("model", "attack", "network", "stage_network"):  # handed over by the program, not set
            continue
        default = node.get(name, parameter.default)
        # "as in TRADES": the other class says it.
        said = [
            meanings.get(name, ""),
            *(docstring(other)[1].get(name, "") for other in [*cls.__mro__, *_mentioned(cls)]),
        ]
        meaning = next((each for each in said if each and not each.startswith("as in ")), said[0])
        rows.append([f"`method.{name}`", f"`{_value(default)}`", _escape(describe(parameter, cls)), _escape(meaning)])
    return _table(["key", "default", "range", "meaning"], rows) if rows else "None of its own."


def _value(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _settings(tree: dict[str, Any]) -> list[str]:
    """What the method's YAML sets outside `method`."""
    keys = [f"`{key}={_value(value)}`" for key, value in _flat(tree)]
    return ["It also sets " + ", ".join(keys) + "."] if keys else []


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rows(document: str, name: str) -> tuple[list[str], list[str]] | None:
    """The header and the row of a method in a document's table."""
    lines = [line for line in (DOCS / document).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    row = next((line for line in lines if line.startswith(f"| `{name}` |")), None)
    head = next((line for line in lines if line.startswith("| method |")), None)
    return (_cells(head), _cells(row)) if head and row else None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _measured(name: str) -> str:
    if (found := _rows("methods.md", name)) is None:
        return "Not measured yet."
    head, row = found
    head, row = head[2:], row[2:]  # without the name and the family
    return (
        _table(head, [row]) + "\n\nOne recipe for all methods; how it was measured: [methods](../methods.md#on-digits)."
    )


def _fidelity(name: str) -> Iterator[str]:
    if (found := _rows("fidelity.md", name)) is None:
        yield "Not compared yet."
        return
    head, row = found
    yield _table(head[1:], [row[1:]])
    text = (DOCS / "fidelity.md").read_text(encoding="utf-8")
    if section := re.search(rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE):
        yield section[1].strip()
    yield "What the columns mean: [fidelity](../fidelity.md)."
