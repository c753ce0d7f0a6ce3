"""The claims harness behind ``zoo reproduce``: a paper's claim in miniature, its rivals, and a verdict.

Importing this imports no torch; `controls` and `runs` do.
"""

from zoo.claims.claim import Claim, claims, read
from zoo.claims.verdict import Compared, Statement, compare, paired_interval, parse

__all__ = ["Claim", "Compared", "Statement", "claims", "compare", "paired_interval", "parse", "read"]
