"""The quick and the slow tier: which methods and which pairs of attack and norm a quick run looks at.

Two markers name parameters of a test:

    @pytest.mark.every_method("name")        `name` is a method, or the experiment of one
    @pytest.mark.every_pair("name", "norm")  `name` is an attack, a method or what else has pairs

The quick tier (`make test`) runs such a test for the methods whose files differ from the last commit on `main`, for
`SAMPLE` more that rotate with the day, and for each attack in one norm, the day's; a method that differs has all its
pairs. What it leaves out carries the mark `slow`; the slow tier (`make test-slow`) runs every one of these tests.
Nothing is left out where `--all-methods`, `-k` or a single test (`file.py::test`) is asked for. `--day N` runs another
day's sample (N is `date.toordinal()`).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
#: Methods of a day; of the changed ones, at most as many as this, so that a change of all does not make the quick
#: tier the slow one.
SAMPLE, CHANGED = 4, 6


def rotating(names: list[str], size: int, day: int) -> list[str]:
    """`size` of the names, the next ones on the next day, all of them in turn."""
    return [names[(day * size + i) % len(names)] for i in range(min(size, len(names)))]


def files_of(method: str) -> set[str]:
    """What makes a method, by paths from the repository's root: its code, configuration and tests."""
    text = (CONF / "method" / f"{method}.yaml").read_text(encoding="utf-8")
    # HE has the class of its base; the margin is its own.
    module = next(iter(re.findall(r"_target_: atbench\.methods\.(\w+)\.", text)), "risk")
    own = {f"conf/method/{method}.yaml", f"conf/experiment/paper/{method}.yaml", f"tests/paper/{method}.yaml"}
    return own | {f"atbench/methods/{module}.py", *(f"tests/methods/test_{name}.py" for name in (module, method))}


def changed_files(folder: Path = REPOSITORY, base: str = "main") -> set[str]:
    """Files that differ from the last commit shared with `base`, new ones included; none without git or `base`."""
    found: set[str] = set()
    for words in (["diff", "--merge-base", "--name-only", base], ["ls-files", "--others", "--exclude-standard"]):
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return set()
        found |= set(done.stdout.splitlines()) if done.returncode == 0 else set()
    return found


def method_of(value: str) -> str:
    """The method that a parameter stands for: itself, or that of the experiment `paper/<value>`."""
    path = CONF / "experiment" / f"paper/{value.removeprefix('paper/')}.yaml"
    if value in METHODS or not path.is_file():
        return value
    return str(re.findall(r"override /method: (\w+)", path.read_text(encoding="utf-8"))[0])


@dataclass(frozen=True)
class Selection:
    """What the quick tier looks at. Chosen once and handed to the workers of xdist, which may begin after midnight."""

    day: int
    methods: list[str]
    everything: bool = False
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: pytest.Config) -> Selection:
        day = config.getoption("--day") or date.today().toordinal()
        files = changed_files()
        changed = rotating([name for name in METHODS if files & files_of(name)], CHANGED, day)
        asked = config.getoption("--all-methods") or config.option.keyword or any("::" in word for word in config.args)
        return cls(day, sorted({*changed, *rotating(METHODS, SAMPLE, day)}), bool(asked), tuple(changed))

    def norm(self, attack: str, attacks: list[str], norms: list[str]) -> str:
        """The norm of an attack today: neighbours in the alphabet get different ones."""
        return norms[(self.day + attacks.index(attack)) % len(norms)]


SELECTION = pytest.StashKey[Selection]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--all-methods", action="store_true", help="every method and every pair, not the day's sample")
    group.addoption("--day", type=int, help="the day whose sample is run, as date.toordinal() (default: today)")


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    config.stash[SELECTION] = Selection(**worker["selection"]) if worker else Selection.of(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["selection"] = asdict(node.config.stash[SELECTION])


def parameters(item: pytest.Item, mark: str) -> list[Any] | None:
    """The values of the parameters that a mark names, if the test has it."""
    marker = item.get_closest_marker(mark)
    return [item.callspec.params[name] for name in marker.args] if marker else None  # type: ignore[attr-defined]


def tested_method(item: pytest.Item) -> str | None:
    """The method of a test that holds for every one."""
    value = parameters(item, "every_method")
    return method_of(value[0]) if value else None


def leave_out_pairs(items: Iterable[pytest.Item], selection: Selection) -> None:
    """Mark as slow every pair but the day's, for each test by itself: not every one has every attack in every norm."""
    tests: dict[Any, list[tuple[pytest.Item, str, str]]] = {}
    for item in items:
        if (pair := parameters(item, "every_pair")) and tested_method(item) not in selection.changed:
            tests.setdefault(item.function, []).append((item, *pair))  # type: ignore[attr-defined]
    for cases in tests.values():
        norms: dict[str, list[str]] = {}
        for _, attack, norm in cases:
            norms.setdefault(attack, []).append(norm)
        for item, attack, norm in cases:
            if norm != selection.norm(attack, list(norms), norms[attack]):
                item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selection = config.stash[SELECTION]
    if selection.everything:
        return
    for item in items:
        method = tested_method(item)
        if method and method not in selection.methods:
            item.add_marker("slow")
    leave_out_pairs(items, selection)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    selection = config.stash[SELECTION]
    if not selection.everything and config.option.markexpr.startswith("not slow"):
        names = ", ".join(selection.methods)
        terminalreporter.write_line(f"every_method, day {selection.day}: {names}; all {len(METHODS)}: make test-slow")
