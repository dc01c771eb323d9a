"""`python -m atbench` and `torchrun ... -m atbench`: the same program as the `atbench` script."""

from __future__ import annotations

import sys

from atbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
