"""Minimum-norm attacks: they look for the nearest misclassified image."""
