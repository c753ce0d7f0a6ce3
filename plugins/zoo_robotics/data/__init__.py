"""Data sets of demonstrations."""
