"""Evaluation: a model and its rivals over every item of a split, and the numbers on a model card."""
