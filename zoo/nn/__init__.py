"""Blocks that every modality shares: mixers with a cache, wirings, and the transformer stack."""

from zoo.nn.attention import Attention
from zoo.nn.rotary import rotary
from zoo.nn.span import Cache, Span
from zoo.nn.transformer import Transformer, TransformerConfig, initialise

__all__ = ["Attention", "Cache", "Span", "Transformer", "TransformerConfig", "initialise", "rotary"]
