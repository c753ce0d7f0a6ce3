"""Ternary experts packed: bit for bit what they compute with, in a tenth of the bytes."""

from __future__ import annotations

import pytest
import torch

from zoo import config as zc
from zoo.spec import ZooError
from zoo.surgery.ternary import expert_bytes, pack, pack_bank, unpack, unpack_bank


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 1, 1), (4, 5, 4), (3, 0, 2)])
def test_packing_is_exact(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    packed = pack(weight)
    assert packed.code_EN.shape == (shape[0], -(-shape[1] * shape[2] // 5)) and packed.code_EN.dtype == torch.uint8
    scale = weight.abs().mean((1, 2), keepdim=True)
    wanted = (weight / scale).round().clamp(-1, 1) * scale
    assert torch.equal(unpack(packed), wanted) if weight.numel() else unpack(packed).shape == shape


def test_five_weights_a_byte_by_hand() -> None:
    packed = pack(torch.tensor([[[1.0, -1.0, 0.1, 1.0, -1.0, 1.0]]]))
    assert packed.code_EN.tolist() == [[2 + 0 * 3 + 1 * 9 + 2 * 27 + 0 * 81, 2]]


def test_a_bank_comes_back_as_it_was_seen_at_a_tenth_of_the_bytes() -> None:
    bank = zc.build("experts", {"name": "ternary", "intermediate_size": 48}, 64, 4)
    bank.reset_parameters(0.1)
    gate_up, down = unpack_bank(pack_bank(bank))
    assert torch.equal(gate_up, bank.weights()[0]) and torch.equal(down, bank.weights()[1])
    small, full = expert_bytes(bank)
    assert full == 2 * 4 * 3 * 48 * 64 and small / full <= 0.11
    with pytest.raises(ZooError, match="no ternary experts"):
        expert_bytes(torch.nn.Linear(2, 2))
