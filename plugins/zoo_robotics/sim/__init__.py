"""Worlds to act in: Meta-World on MuJoCo, and a point in the plane."""
