"""Gradient ascent inside a norm ball: the attacks of training, and the loop of most attacks of the evaluation."""
