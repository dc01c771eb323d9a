"""The run folder: atomic writes, locks, status, sweeps and signals."""
