"""Norm balls and the projections onto them."""
