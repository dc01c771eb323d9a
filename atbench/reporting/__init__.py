"""Output of a run: terminal, metrics.jsonl and W&B, and reports read from run folders."""

from __future__ import annotations

from atbench.reporting import report
from atbench.reporting.console import print_facts, print_summary
from atbench.reporting.metrics_log import MetricsLog, truncate_log
from atbench.reporting.progress import Progress
