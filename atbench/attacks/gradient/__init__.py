"""Gradient attacks of the evaluation."""
