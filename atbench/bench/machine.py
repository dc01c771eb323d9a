"""The peak of this machine: matrix products and a convolution of PreActResNet-18, in GFLOP/s."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.bench.clock import Work
from atbench.bench.results import Row
from atbench.bench.session import Session
from atbench.models.cuda_settings import cuda_settings


def peak(session: Session) -> list[Row]:
    """GFLOP/s of a product of two square matrices, and of a 3x3 convolution of 64 to 64 channels at 32x32."""
    cuda = session.device.type == "cuda"
    side, batch, repeat = (8192, 512, 10) if cuda else (1024, 16, 3)
    if session.tiny:
        side, batch, repeat = 16, 1, 1
    rows = []
    for number in ("fp32", *(["tf32"] if cuda else []), "bf16"):
        dtype = torch.bfloat16 if number == "bf16" else torch.float32
        a = torch.randn(side, side, device=session.device).to(dtype)
        x = torch.randn(batch, 64, 32, 32, device=session.device).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(64, 64, 3, 3, device=session.device).to(dtype, memory_format=torch.channels_last)
        tools: dict[str, Work] = {
            "gemm": partial(repeated, repeat, torch.mm, a, a),
            "conv": partial(repeated, repeat, F.conv2d, x, w, padding=1),
        }
        work = {"gemm": 2 * side**3 * repeat, "conv": 2 * batch * 64 * 64 * 9 * 32 * 32 * repeat}
        with cuda_settings("tf32" if number == "tf32" else "ieee"), torch.no_grad():
            seconds = session.seconds(tools)
        what = {"gemm": f"{side}x{side} matrices", "conv": f"3x3 convolution, 64 channels, 32x32, batch {batch}"}
        for name, times in seconds.items():
            rates = [work[name] / max(each, 1e-9) / 1e9 for each in times]
            rows.append(session.row(f"peak/{name}/{number}", f"peak {number}: {what[name]}", rates, "GFLOP/s"))
    return rows


def peak_of(rows: list[Row], number: str) -> float:
    """The better of the two in FLOP/s."""
    return 1e9 * max(row.median for row in rows if row.name.endswith(f"/{number}"))


def repeated(times: int, work: Callable[..., object], *args: Tensor, **options: int) -> None:
    for _ in range(times):
        work(*args, **options)
