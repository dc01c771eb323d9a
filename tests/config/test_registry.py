"""What `atbench list` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from atbench.cli.main import main
from atbench.config import registry
from atbench.config.instantiate import locate
from atbench.errors import ConfigError
from tests.support.configs import resolved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config folder with methods in both places where `about` may lie, and one that has none."""
    (tmp_path / "method").mkdir()
    files = {
        "inner": "# @package _global_\nmethod:\n  about: {name: inner, family: new, survey: true, summary: first}\n",
        "outer": "about: {name: outer, family: new, paper: '[bold]x[/bold]', summary: second}\n_target_: a.b\n",
        "bare": "# @package _global_\nmethod: {_target_: a.b}\n",
        "empty": "",
    }
    for name, text in files.items():
        (tmp_path / "method" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_about_is_found_in_both_places_and_may_be_missing(folder: Path) -> None:
    rows = {row["name"]: row for row in registry.entries("methods", [folder])}
    assert list(rows) == ["bare", "empty", "inner", "outer"]
    assert rows["inner"]["survey"] is True and rows["outer"]["summary"] == "second"
    assert rows["bare"] == {"name": "bare"} and rows["empty"] == {"name": "empty"}


def test_about_lies_under_the_options_own_name_where_a_run_may_have_several(tmp_path: Path) -> None:
    (tmp_path / "plus").mkdir()
    text = "# @package _global_\nplus: {mine: {about: {name: mine, summary: here}}, other: {about: {name: other}}}\n"
    (tmp_path / "plus" / "mine.yaml").write_text(text)
    assert registry.entries("plus", [tmp_path]) == [{"name": "mine", "summary": "here"}]


def test_survey_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.show("methods", [folder], as_json=True, survey=True) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["inner"]


def test_a_table_shows_text_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.show("methods", [folder], as_json=False, survey=False)
    assert "[bold]x[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize("kind", registry.KINDS)
@pytest.mark.parametrize("width", [80, 120])
def test_a_table_has_one_line_an_option_in_any_terminal(kind: str, width: int) -> None:
    rows = registry.entries(kind, [registry.conf_dir()])
    columns = [
        column
        for column in ("name", "use", "family", "paper", "status", "summary")
        if any(map(dict.get, rows, [column] * len(rows)))
    ]
    lines = registry.table_lines(rows, columns, width)
    assert len(lines) == len(rows) + 1 and max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in rows] and "summary" in lines[0]


def test_a_pipe_gets_all_of_a_row_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "method" / "long.yaml").write_text(f"about: {{summary: {'x' * 300}, paper: 'A 2020, ICML', family: z}}\n")
    registry.show("methods", [folder], as_json=False, survey=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("long")]
    assert line.split() == ["long", "z", "A", "2020,", "ICML", "x" * 300]


def test_a_later_folder_adds_and_replaces(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    later = tmp_path_factory.mktemp("later")
    (later / "method").mkdir()
    (later / "method" / "inner.yaml").write_text("method: {about: {name: inner, summary: replaced}}\n")
    rows = {row["name"]: row for row in registry.entries("methods", [folder, later])}
    assert rows["inner"]["summary"] == "replaced" and len(rows) == 4


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "method" / "broken.yaml").write_text("a: [b\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        registry.entries("methods", [folder])


def test_every_kind_lists_all_files_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    kinds = {row["name"]: row["options"] for row in json.loads(capsys.readouterr().out)}
    for kind, group in registry.KINDS.items():
        assert main(["list", kind, "--json"]) == 0
        names = [row["name"] for row in json.loads(capsys.readouterr().out)]
        files = [
            path.relative_to(registry.conf_dir() / group) for path in (registry.conf_dir() / group).rglob("*.yaml")
        ]
        assert names == sorted(path.with_suffix("").as_posix() for path in files)
        assert len(names) == kinds[kind]


#: Family → methods that the survey names.
SURVEY = yaml.safe_load((Path(__file__).parent / "survey.yaml").read_text(encoding="utf-8"))
FAMILIES = set(SURVEY)
STATUS = {"code read", "paper read", "partly from memory"}
EFFECTS = {"clean", "robust", "faint", "transfer", "union", "rejection"}


@pytest.mark.parametrize("entry", registry.entries("methods", [registry.conf_dir()]), ids=lambda entry: entry["name"])
def test_a_method_says_what_it_is(entry: dict[str, object]) -> None:
    """Its family is the survey's; how well its source is known and what it is to show come from short lists."""
    assert set(entry) == set(registry.FIELDS) - {"use"}
    assert entry["family"] in FAMILIES and entry["status"] in STATUS and entry["effect"] in EFFECTS
    file = registry.conf_dir() / "method" / f"{entry['name']}.yaml"
    node = yaml.safe_load(file.read_text(encoding="utf-8"))["method"]
    target = node.get("_target_") or resolved(f"method={entry['name']}").method._target_
    told = (locate(target, "method._target_").__doc__ or "").replace("\n    ", " ")
    assert entry["status"] != "partly from memory" or "from memory" in told.lower(), (
        "the docstring says what is from memory"
    )


def test_the_table_has_a_column_only_where_somebody_fills_it(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, there in (("methods", True), ("datasets", False)):
        assert main(["list", kind]) == 0
        assert ("status" in capsys.readouterr().out.splitlines()[0]) is there


def test_every_method_of_the_survey_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else is said to be the survey's: `list methods --survey --json`, by family."""
    assert main(["list", "methods", "--survey", "--json"]) == 0
    found: dict[str, set[str]] = {}
    for row in json.loads(capsys.readouterr().out):
        found.setdefault(row["family"], set()).add(row["name"])
    assert found == {family: set(names) for family, names in SURVEY.items()}
