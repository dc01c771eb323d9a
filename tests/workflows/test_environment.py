"""What a run notes of the machine and of the checkout that it runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from atbench.workflows import environment


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a program, a configuration and a document, all of them committed."""
    for name in ("atbench/workflows/environment.py", "conf/a.yaml", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "atbench" / "workflows" / "environment.py"))
    return tmp_path


def test_a_commit_is_dirty_where_the_program_or_its_configuration_differs(checkout: Path) -> None:
    commit = environment._commit()
    assert commit is not None and len(commit) == 12 and int(commit, 16) >= 0
    (checkout / "README.md").write_text("2")
    assert environment._commit() == commit, "a document changes no figure"
    (checkout / "conf" / "a.yaml").write_text("2")
    assert environment._commit() == f"{commit}-dirty"


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "atbench" / "workflows" / "environment.py"))
    assert environment._commit() is None
