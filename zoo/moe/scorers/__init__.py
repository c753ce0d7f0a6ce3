"""Scorers: from token states to logits over experts. ``forward(x_TD, ctx, state) -> (logits_TE, state)``, in fp32.

``x_TD`` comes in fp32; parameters are cast where they are used, so that a model in bf16 still routes in fp32.
"""
