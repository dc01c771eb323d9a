"""The end of the process: its exit code, all that was said, and what others have registered for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from atbench import __main__ as program

def main():
    print("x" * 200_000)
    print("said", file=sys.stderr)
    return 3

program.main = main
atexit.register(print, "registered")
program.run()
"""


def test_nothing_is_lost_at_the_end() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (3, "said\n")
    assert ended.stdout == "x" * 200_000 + "\nregistered\n"


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["nonsense"], 2)])
def test_the_module_is_the_program(words: list[str], code: int) -> None:
    assert subprocess.run([sys.executable, "-m", "atbench", *words], capture_output=True).returncode == code


def test_what_is_imported_is_not_looked_through_again_until_the_end() -> None:
    """Once: what the jobs of a sweep leave behind is collected."""
    lines = (
        "import atexit, gc",
        "atexit.register(lambda: print(gc.get_freeze_count()))",
        "from atbench.cli.workflow import workflow",
        "workflow('train')",
        "frozen = gc.get_freeze_count()",
        "print(gc.isenabled(), frozen > 100_000)",
        "workflow('train'), workflow('evaluate')",
        "print(gc.get_freeze_count() == frozen)",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert ended.stdout == "True True\nTrue\n0\n" and not ended.stderr
