"""One file an objective."""
