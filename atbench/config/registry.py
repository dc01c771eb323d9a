"""Registry of the config options, read from the `about:` node of their YAML files, without Hydra and torch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from atbench.errors import ConfigError, hint, refuse_unknown

KINDS: Mapping[str, str] = {
    "methods": "method",
    "attacks": "attack",
    "models": "model",
    "datasets": "dataset",
    "recipes": "recipe",
    "plus": "plus",
    "evals": "eval",
    "loggers": "logger",
    "experiments": "experiment",
}
FIELDS = ("name", "family", "use", "paper", "survey", "status", "effect", "formula", "summary")
# In a narrow terminal these go, one after the other, until the summary has so much room.
_LEFT_OUT, _LEAST = ("status", "paper", "use", "family"), 40
_COLUMNS = ("name", "use", "family", "paper", "status", "summary")
# The C parser is ten times faster; PyYAML is built without it on some machines.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def conf_dir() -> Path:
    """The folder of our own configs: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def options(group: str, folders: Sequence[Path]) -> list[str]:
    """The names that `group` has in these config folders; "" for the primary configs, "/" for the groups themselves."""
    if group == "/":
        names = {path.name for folder in folders for path in folder.iterdir() if path.is_dir() and path.name != "hydra"}
    else:
        names = {_name(path, folder / group) for folder in folders for path in (folder / group).rglob("*.yaml")}
    return sorted(names)


def entries(kind: str, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What is known of each option of a kind, by name; of two files of one name the later folder's counts.

    Raises ConfigError for an unknown kind and for a file that is no YAML.
    """
    if kind not in KINDS:
        raise ConfigError("list", kind, "there is no such kind", hint(kind, KINDS))
    group = KINDS[kind]
    files = {_name(path, folder / group): path for folder in folders for path in (folder / group).rglob("*.yaml")}
    return [{"name": name, **about(files[name], group)} for name in sorted(files)]


def _name(path: Path, group: Path) -> str:
    """What an option is called on the command line: its file's name, with the folders below the group."""
    return path.relative_to(group).with_suffix("").as_posix()


def about(file: Path, group: str) -> dict[str, Any]:
    """The `about:` node of one option; {} if there is none. Where the file is global, it lies under the group's name,
    and under the option's own in there where a run may have several options of the group.
    """
    tree = read_option(file)
    inner = tree.get(group) if isinstance(tree, dict) else None
    own = inner.get(file.stem) if isinstance(inner, dict) else None
    for node in (tree, inner, own):
        if isinstance(node, dict) and isinstance(node.get("about"), dict):
            return {key: node["about"][key] for key in FIELDS if key in node["about"]}
    return {}


def benchmark(name: str) -> dict[str, dict[str, Any]]:
    """The methods of a benchmark of others, by the name that they have there, the most robust first: what
    benchmarks.yaml says of each. Raises ConfigError for an unknown benchmark.
    """
    known = read_option(Path(__file__).with_name("benchmarks.yaml"))
    refuse_unknown("--benchmark", name, list(known), "benchmark")
    return dict(sorted(known[name].items(), key=lambda entry: -entry[1]["autoattack"][0]))


def show_benchmark(name: str, as_json: bool) -> int:
    """Print a benchmark's methods beside ours, its figures and what a training costs there."""
    rows = [{"name": key, **given} for key, given in benchmark(name).items()]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    texts = [
        {
            "name": row["name"],
            "ours": " ".join([f"method={row['method']}", *row.get("words", []), *_recipe(row)]),
            "clean %": "{:.2f} ± {:.2f}".format(*row["clean"]),
            "AutoAttack %": "{:.2f} ± {:.2f}".format(*row["autoattack"]),
            "seconds": str(row["seconds"]),
            "not as there": row.get("differs", ""),
        }
        for row in rows
    ]
    columns = ("name", "clean %", "AutoAttack %", "seconds", "ours", "not as there")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(*table_lines(texts, columns, width), sep="\n")
    print(f"\nas they are there: atbench train experiment={name}/NAME; any method in that setting: experiment={name}")
    return 0


def _recipe(row: Mapping[str, Any]) -> list[str]:
    """Of a method without an average of the weights, which all others have."""
    return [] if row.get("averaged", True) else ["recipe=fastat"]


def read_option(file: Path) -> Any:
    """The content of one option's file. Raises ConfigError where it is no YAML."""
    try:
        with file.open(encoding="utf-8") as stream:
            return yaml.load(stream, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(str(file), "YAML", str(error).splitlines()[0], "correct the file") from error


def show(kind: str | None, folders: Sequence[Path], as_json: bool, survey: bool) -> int:
    """Print the options of a kind, or the kinds themselves, as a table or as JSON on stdout."""
    if kind is None:
        rows = [
            {"name": name, "group": group, "options": len(options(group, folders))} for name, group in KINDS.items()
        ]
        columns: Sequence[str] = ("name", "group", "options")
    else:
        rows = [row for row in entries(kind, folders) if row.get("survey") or not survey]
        columns = [column for column in _COLUMNS if column == "name" or any(column in row for row in rows)]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(*table_lines(rows, columns, width), sep="\n")
    return 0


def table_lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None) -> list[str]:
    """A table with one line a row. In `width` columns the papers are cut to authors and year, columns are left out as
    long as the last one is squeezed, and what is still too long ends in an ellipsis; without one all is shown.
    """
    cells = [list(columns), *([str(row.get(column, "")) for column in columns] for row in rows)]
    if width is not None and "paper" in columns:
        place = list(columns).index("paper")
        cells = [[text.partition(",")[0] if k == place else text for k, text in enumerate(line)] for line in cells]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    shown = list(range(len(columns)))
    for name in _LEFT_OUT if width is not None else ():
        if name in columns and sum(widths[k] + 2 for k in shown[:-1]) + _LEAST > (width or 0):
            shown.remove(list(columns).index(name))
    lines = ["  ".join(line[k].ljust(widths[k]) for k in shown).rstrip() for line in cells]
    return [line if width is None or len(line) <= width else f"{line[: width - 1]}…" for line in lines]
