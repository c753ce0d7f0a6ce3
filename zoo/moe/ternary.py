"""Ternary experts, packed: five weights a byte, for 3^5 = 243 of its 256 values, and one scale a matrix (MoTE).

`packed` is what `zoo.hub.save` writes with ``pack``, `unpacked` what loading makes of it.

Shapes: E experts, R rows, C columns of a matrix, N bytes of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.moe.experts import Ternary
from zoo.spec import ZooError

DIGITS = 5
POWERS = 3 ** torch.arange(DIGITS)


class Packed(NamedTuple):
    """``code_EN`` in bytes and ``scale_E`` of matrices of ``shape`` (R, C)."""

    code_EN: Tensor
    scale_E: Tensor
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        return self.code_EN.numel() + self.scale_E.numel() * self.scale_E.element_size()


def pack(weight_ERC: Tensor) -> Packed:
    """Matrices as `zoo.moe.experts.mlp.ternary` sees them: ``s * clip(round(W / s), -1, 1)``, ``s = mean|W|``."""
    weight_ERC = weight_ERC.detach()
    scale_E11 = weight_ERC.abs().mean((-2, -1), keepdim=True).clamp(min=1e-8)
    digit_EN = (weight_ERC / scale_E11).round().clamp(-1, 1).add(1).flatten(1).to(torch.int64)
    digit_EN = nn.functional.pad(digit_EN, (0, -digit_EN.shape[1] % DIGITS))
    code_EN = (digit_EN.unflatten(1, (-1, DIGITS)) * POWERS.to(digit_EN.device)).sum(-1).to(torch.uint8)
    return Packed(code_EN, scale_E11.flatten(), (weight_ERC.shape[1], weight_ERC.shape[2]))


def unpack(packed: Packed) -> Tensor:
    """(E, R, C): the matrices, bit for bit those that were seen."""
    code_EN1 = packed.code_EN.to(torch.int64)[..., None]
    digit_EN = (code_EN1 // POWERS.to(code_EN1.device) % 3).flatten(1)[:, : packed.shape[0] * packed.shape[1]]
    weight_ERC = (digit_EN - 1).to(packed.scale_E.dtype).unflatten(1, packed.shape)
    return weight_ERC * packed.scale_E[:, None, None]


def pack_bank(bank: Ternary) -> dict[str, Packed]:
    """The matrices of a bank: ``gate``, ``up`` and ``down``, each with scales of its own."""
    gate_ERC, up_ERC = bank.gate_up_proj.chunk(2, 1)
    return {"gate": pack(gate_ERC), "up": pack(up_ERC), "down": pack(bank.down_proj)}


def unpack_bank(packed: dict[str, Packed]) -> tuple[Tensor, Tensor]:
    """``gate_up`` and ``down`` as `Ternary.weights` gives them."""
    return torch.cat([unpack(packed["gate"]), unpack(packed["up"])], 1), unpack(packed["down"])


def expert_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of all ternary experts of a model, packed with their scales, and in bf16. Raises `ZooError` when it has
    none."""
    banks = list(_banks(model))
    if not banks:
        raise ZooError("the model has no ternary experts; choose experts.name=ternary")
    small = sum(part.bytes for bank in banks for part in pack_bank(bank).values())
    return small, sum(2 * p.numel() for bank in banks for p in bank.parameters())


def _banks(model: nn.Module) -> Iterator[Ternary]:
    return (module for module in model.modules() if isinstance(module, Ternary))


_MATRICES = {"gate_up_proj": 2, "down_proj": 1}  # matrices with a scale of their own in each parameter


def packed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with ``KEY.code`` and ``KEY.scale`` in the place of the matrices of its ternary experts. Raises
    `ZooError` when it has none."""
    found = dict(state)
    for key, _, count in _places(model):
        code_MN, scale_M, _ = pack(found.pop(key).unflatten(1, (count, -1)).flatten(0, 1))
        found |= {f"{key}.code": code_MN, f"{key}.scale": scale_M}
    if len(found) == len(state):
        raise ZooError("the model has no ternary experts to pack; choose experts.name=ternary, or leave pack out")
    return found


def unpacked(model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inverse, for a model of the same sizes: weights that `Ternary` sees as those that were packed (to the last
    bits of the scale); what they were trained from is lost. Raises `ZooError` when the sizes differ."""
    places = [place for place in _places(model) if f"{place[0]}.code" in tensors]
    found = {key: tensors[key] for key in tensors} if places else tensors
    for key, weight_ERC, count in places:
        assert isinstance(found, dict)
        code_MN, scale_M = found.pop(f"{key}.code"), found.pop(f"{key}.scale", torch.zeros(0))
        experts, rows, columns = weight_ERC.shape
        shape = (rows // count, columns)
        wanted = (experts * count, -(-shape[0] * columns // DIGITS))
        if code_MN.shape != wanted or len(scale_M) != len(code_MN):
            raise ZooError(f"'{key}' is packed for other sizes: {tuple(code_MN.shape)} codes, wanted {wanted}")
        digit_MRC = unpack(Packed(code_MN, torch.ones_like(scale_M), shape))
        # A matrix is seen by the mean of its absolute values, which here is that of the digits.
        share_M = digit_MRC.abs().mean((-2, -1)).clamp(min=1 / max(1, shape[0] * columns))
        found[key] = (digit_MRC * (scale_M / share_M)[:, None, None]).unflatten(0, (experts, count)).flatten(1, 2)
    return found


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    for name, bank in model.named_modules():
        if isinstance(bank, Ternary):
            for key, count in _MATRICES.items():
                yield f"{name}.{key}" if name else key, getattr(bank, key), count
