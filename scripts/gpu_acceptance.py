"""Acceptance on a CUDA machine, in stages that go on over several calls and end in time (docs/gpu.md).

    python scripts/gpu_acceptance.py --minutes 25
    python scripts/gpu_acceptance.py --minutes 10 --only parity,bench
    python scripts/gpu_acceptance.py --device cpu --smoke --out /tmp/smoke     try the script itself

Exit codes: 0 all is done and passed, 1 something did not pass, 2 arguments, 5 no CUDA, 75 time is over and stages are
left.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    began = time.monotonic()  # before torch is imported, which may take long
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="the call is over by then")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="versions,parity,tests,capture,ranks,bench,rows", help="some of the stages")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu", help="where checkpoints lie")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where CIFAR-10 lies")
    parser.add_argument("--fresh", action="store_true", help="begin again")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from atbench.errors import AtbenchError
    from scripts.gpu.device import device_of

    try:
        device = device_of(args.device, args.smoke)
    except AtbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from scripts.gpu.acceptance import run  # the whole program, which takes seconds

    return run(args, device, began + 60 * args.minutes)


if __name__ == "__main__":
    sys.exit(main())
