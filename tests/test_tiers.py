"""The tiers: what a quick run leaves out is in the slow one, every method and pair has its day, changes come first."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import tiers
from tests.support.tiers import CHANGED, METHODS, REPOSITORY, SAMPLE, Selection, files_of, method_of, rotating

DAY = 739_948
MODULE = f"""
import pytest

@pytest.mark.parametrize("name", {METHODS})
@pytest.mark.every_method("name")
def test_method(name): pass

@pytest.mark.parametrize(("name", "norm"), [(a, n) for a in "abcd" for n in ("linf", "l2", "l1")])
@pytest.mark.every_pair("name", "norm")
def test_pair(name, norm): pass

@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in {METHODS} for mode in ("x", "y", "z")])
@pytest.mark.every_method("name")
@pytest.mark.every_pair("name", "mode")
def test_mode(name, mode): pass

def test_plain(): pass

@pytest.mark.slow
def test_slow(): pass
"""
QUICK, SLOW = "not slow and not faults", "slow or every_method or every_pair"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of its own, on a day and with changes that are known."""
    pytester.makepyfile(MODULE)
    pytester.makeini("[pytest]\nmarkers =\n  slow:\n  faults:\n  every_method:\n  every_pair:\n")
    monkeypatch.setattr(
        tiers, "changed_files", lambda: {"conf/method/trades.yaml", "atbench/methods/te.py", "README.md"}
    )
    return pytester


def collected(suite: pytest.Pytester, *words: str) -> set[str]:
    """The tests of the suite that these words leave, by name."""
    ran = suite.inline_run("--collect-only", "-p", "tests.support.tiers", f"--day={DAY}", *words)
    (finished,) = ran.getcalls("pytest_collection_finish")
    return {item.name for item in finished.session.items}


def test_both_tiers_together_are_everything(suite: pytest.Pytester) -> None:
    everything = collected(suite)
    quick, slow = collected(suite, "-m", QUICK), collected(suite, "-m", SLOW)
    assert len(everything) == 4 * len(METHODS) + 12 + 2
    assert quick | slow == everything and everything - slow == {"test_plain"}
    assert quick == collected(suite, "-m", QUICK) and "test_slow" not in quick
    of_methods = {
        f"test_method[{name}]" for name in ("trades", "pgd_at_te", "trades_te", *rotating(METHODS, SAMPLE, DAY))
    }
    assert {name for name in quick if "method" in name} == of_methods
    changed = [name for name in of_methods if re.search(r"\[(trades|pgd_at_te|trades_te)\]", name)]
    modes = [name for name in quick if name.startswith("test_mode")]
    assert len(modes) == len(of_methods) + 2 * len(changed), "every pair of what changed, one of the others"
    assert sum("pair" in name for name in quick) == 4
    assert quick != collected(suite, "-m", QUICK, f"--day={DAY + 1}")


@pytest.mark.parametrize("words", [("--all-methods",), ("-k", "test")])
def test_nothing_is_left_out_of_what_is_asked_for(suite: pytest.Pytester, words: tuple[str, ...]) -> None:
    assert collected(suite, "-m", QUICK, *words) == collected(suite) - {"test_slow"}


def test_every_method_has_its_day() -> None:
    for names in (METHODS, METHODS[:4], [str(i) for i in range(80)]):
        days = -(-len(names) // SAMPLE)
        assert {name for day in range(days) for name in rotating(names, SAMPLE, DAY + day)} == set(names)
        assert all(len(set(rotating(names, SAMPLE, day))) == min(SAMPLE, len(names)) for day in range(DAY, DAY + days))
    assert rotating([], SAMPLE, DAY) == []


def test_every_attack_has_every_norm_and_every_norm_several_attacks() -> None:
    attacks, norms = list("abcdef"), ["linf", "l2", "l1"]
    chosen = [{name: Selection(day, []).norm(name, attacks, norms) for name in attacks} for day in range(DAY, DAY + 3)]
    assert all({day[name] for day in chosen} == set(norms) for name in attacks)
    assert all(list(day.values()).count(norm) == 2 for day in chosen for norm in norms)


@pytest.mark.parametrize("name", METHODS)
def test_the_files_of_a_method(name: str) -> None:
    files = files_of(name)
    assert len([path for path in files if path.startswith("atbench/") and (REPOSITORY / path).is_file()]) == 1
    assert (REPOSITORY / "conf" / "method" / f"{name}.yaml").is_file() and method_of(name) == name


def test_an_experiment_stands_for_its_method() -> None:
    assert method_of("paper/gowal2020") == method_of("gowal2020") == "trades" and method_of("paper/mart") == "mart"
    for path in (REPOSITORY / "conf" / "experiment" / "paper").glob("*.yaml"):
        assert method_of(path.stem) in METHODS


def test_a_change_of_every_method_is_no_slow_tier(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "changed_files", lambda: {f"conf/method/{name}.yaml" for name in METHODS})
    assert sum("method" in name for name in collected(suite, "-m", QUICK)) <= SAMPLE + CHANGED


def test_changed_files_are_those_since_the_branch_left_main(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = (
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "init.defaultBranch=main",
        )
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert tiers.changed_files(tmp_path) == set(), "no repository"
    git("init")
    for name in ("kept", "edited", "theirs"):
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-m", "first")
    git("branch", "ours")
    (tmp_path / "theirs").write_text("after")
    git("commit", "-am", "main goes on")
    git("checkout", "ours")
    (tmp_path / "edited").write_text("after")
    git("commit", "-am", "a change")
    (tmp_path / "kept").write_text("not committed")
    (tmp_path / "new").write_text("")
    assert tiers.changed_files(tmp_path) == {"edited", "kept", "new"}
    assert tiers.changed_files(tmp_path, "no-such-branch") == {"new"}
