"""Gradient ascent inside a norm ball: what training uses, and what most evaluation attacks are made of."""
