"""Measurements of this machine, and what a run would take: `atbench bench`."""
