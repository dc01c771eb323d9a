"""docs/python.md and examples/ run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = [
    pytest.param(
        path, id=path.stem, marks=[pytest.mark.slow] if "atbench.train(" in path.read_text(encoding="utf-8") else []
    )
    for path in sorted((REPOSITORY / "examples").glob("*.py"))
]


@pytest.mark.slow
def test_the_blocks_of_the_documentation_run(here: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), namespace)
    assert len(blocks) >= 7 and namespace["result"].n == len(namespace["x"]) and namespace["run"].is_dir()


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_examples_run(path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert "%" in capsys.readouterr().out
