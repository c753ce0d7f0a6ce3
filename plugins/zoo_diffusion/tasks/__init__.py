"""Objectives with their metrics."""
