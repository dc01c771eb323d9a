"""The page of every method in the documentation (scripts/method_pages.py)."""

from __future__ import annotations

import html
import inspect
import re

import pytest

from scripts import method_pages


@pytest.mark.parametrize("name", method_pages.names())
def test_a_page_holds_what_its_sources_say(name: str) -> None:
    text = method_pages.page(name)
    node = method_pages.method_node(name)
    assert html.escape(node["about"]["formula"]) in text
    assert re.search(r"\| \*\*Cost\*\* \| .*\d.* \|\n", text), "the cost, on one line"
    cls = method_pages._target(node["_target_"])
    knobs = set(inspect.signature(cls).parameters) - {"model", "attack", "network", "stage_network"}
    rows = dict(re.findall(r"\| `method\.(\w+)` \| `(.*?)` \|", text))
    assert set(rows) == knobs, "every option of the constructor"
    for key in knobs & set(node):
        if isinstance(node[key], int | float) and not isinstance(node[key], bool):
            assert float(rows[key]) == node[key], "the default is that of the YAML"
    meanings = re.findall(r"\| `method\.\w+` \|[^|]*\|[^|]*\| (.*) \|\n", text + "\n")
    assert len(meanings) == len(knobs) and not any(meaning.startswith("as in ") for meaning in meanings)
    assert all(meanings), "every option is explained"
    assert "inspect._empty" not in text and "a list of a list" not in text


def test_rows_are_those_of_the_tables() -> None:
    text = method_pages.page("trades")
    for document in ("methods.md", "fidelity.md"):
        line = next(
            line
            for line in (method_pages.DOCS / document).read_text(encoding="utf-8").splitlines()
            if line.startswith("| `trades` |")
        )
        assert line.split("|")[-3].strip() in text and line.split("|")[4].strip() in text
    assert "Repository: yaodongyu/TRADES" in text and "| `method.beta` | `6` | a number from 0 |" in text
    assert "`attack.start=gaussian`" in text


def test_prose_keeps_its_signs_and_its_breaks() -> None:
    class Example:
        """x* < y_i [0, 1], `a_b`.

        With these,
        z = x · y
        - one point of the docstring, whose line is as long as lines of docstrings may be at the most, which is
        - another.
        Cost: 3 forward passes.
        """

    (first, second), arguments = method_pages.docstring(Example)
    assert first == r"x\* &lt; y\_i \[0, 1\], `a_b`." and not arguments
    assert second.splitlines()[0] == "With these,  " and second.count("  \n") == 4
    assert second.endswith("**Cost**: 3 forward passes.")


def test_what_a_yaml_says_above_its_settings_is_part_of_the_method() -> None:
    assert (
        "base=pgd\\_at, trades, alp, free\\_at or fast\\_at is what it trains with"
        in method_pages.page("he").split("## Options")[0]
    )
    assert method_pages._lead("# @package _global_\nmethod: {}\n# a\n") == []
