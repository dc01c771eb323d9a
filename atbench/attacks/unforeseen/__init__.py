"""Attacks that a network was not trained against: distortions other than a small norm ball (Kang et al. 2019)."""
