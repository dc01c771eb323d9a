"""The program: `atbench`, `python -m atbench` and `torchrun ... -m atbench`."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from atbench.cli.main import main


def run() -> NoReturn:
    """Run this process's command line and end the process with its exit code.

    What is registered for the end runs and both streams are flushed; then the process ends at once. Python would first
    free torch's modules object by object, for 0.9 s.
    """
    code = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader has gone, or the stream is closed
            code = code or 141
    os._exit(code)


if __name__ == "__main__":
    run()
