"""ONNX answers as torch does, for any number of images; without its packages it is refused before any work."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from atbench.cli.main import main
from atbench.errors import DataError
from atbench.models.cnn import CNN
from atbench.workflows import onnx_file

installed = all(importlib.util.find_spec(name) for name in onnx_file.PACKAGES)
needs_packages = pytest.mark.skipif(not installed, reason="atbench[export] is not installed")


def test_a_missing_package_is_refused_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["export", "nowhere", "--onnx"]) == 2
    err = capsys.readouterr().err
    assert err == "error: export: --onnx — needs onnxruntime; install the extra: pip install 'atbench[export]'\n"


def small() -> nn.Module:
    torch.manual_seed(0)
    return CNN((1, 8, 8), 10, (0.3,), (0.2,), width=4)


@needs_packages
@pytest.mark.slow
def test_onnxruntime_gives_torchs_logits(tmp_path: Path) -> None:
    import onnxruntime

    network, x = small(), torch.rand(16, 1, 8, 8)
    written = onnx_file.to_onnx(network, x)
    assert json.loads(json.dumps(written.about))["checked"] == 16
    (tmp_path / "model.onnx").write_bytes(written.data)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for n in (1, 5):
        x = torch.rand(n, 1, 8, 8)
        (logits,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(x), rtol=1e-4, atol=1e-5)


@needs_packages
@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def other(network: nn.Module, *words: Any, **options: Any) -> Any:
        return real(CNN((1, 8, 8), 10, (0.3,), (0.2,), width=4), *words, **options)

    monkeypatch.setattr(onnx_file.torch.onnx, "export", other)
    with pytest.raises(DataError, match=r"model\.onnx — onnxruntime's logits differ"):
        onnx_file.to_onnx(small(), torch.rand(4, 1, 8, 8))


@needs_packages
def test_what_cannot_be_written_is_refused_in_one_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1) * (2 if float(x.sum()) > 1 else 1))

    with pytest.raises(DataError, match=r"model\.onnx — cannot be written \([^\n]*\); leave --onnx out$"):
        onnx_file.to_onnx(Branch(), torch.rand(4, 1, 8, 8))


def test_the_files_go_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """`export --onnx` hands the flag on."""
    seen: list[Any] = []
    fake = SimpleNamespace(export_run=lambda *words: seen.append(words) or 0)
    monkeypatch.setitem(__import__("sys").modules, "atbench.workflows.export", fake)
    assert main(["export", "run", "--onnx"]) == 0 and main(["export", "run"]) == 0
    assert [words[-1] for words in seen] == [True, False]
