"""Attacks that query the network without its gradients."""
