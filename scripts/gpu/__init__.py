"""Stages of the acceptance on a GPU (scripts/gpu_acceptance.py)."""
