"""Blocks that every modality shares: attention with a cache, and the pre-norm transformer stack."""

from zoo.nn.attention import Attention, Cache, rotary
from zoo.nn.transformer import Transformer, TransformerConfig

__all__ = ["Attention", "Cache", "Transformer", "TransformerConfig", "rotary"]
