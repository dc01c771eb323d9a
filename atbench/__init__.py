"""Adversarial training as one formula: a method, an attack, a model and a data set, each chosen on the command line."""

__version__ = "0.1.0"
