"""The fast CPU path."""

from zoo_kernels import reference

route = reference.route


def unavailable() -> str:
    """Why this backend cannot be used here; empty if it can."""
    return "not built yet"
