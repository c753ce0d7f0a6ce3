"""Selectors: which experts. ``forward(x_TD, select_TE, scores_TE, ctx) -> (index_TK, used_TK)``; K is ``slots``.

They look at ``select``, which carries no gradient and where -inf forbids; the router adds that padding and forbidden
experts are never used. A selector of a variable number of experts takes as many slots as it may ever use and marks the
others unused: `pack` makes that of a table of choices.

Shapes: T tokens, K slots, E experts, D model width.
"""
