"""Ternary experts packed: bit for bit what they compute with, in a tenth of the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from zoo import config as zc
from zoo import hub
from zoo.moe.experts import Ternary
from zoo.moe.ternary import expert_bytes, pack, pack_bank, unpack, unpack_bank, unpacked
from zoo.spec import ZooError


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


def test_a_saved_model_is_packed_and_loads(tmp_path: Path) -> None:
    """The experts take a twentieth of their bytes in fp32; what they compute is the same."""
    torch.manual_seed(0)
    model = zoo.create_model("vision_language/mote_tiny").eval()
    with torch.no_grad():
        for moe in ternaries(model):
            moe.gate_up_proj[0, :5] = 0  # a scale of its own for each matrix
    hub.save(tmp_path / "full", model)
    hub.save(tmp_path / "packed", model, pack=True)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "packed")}
    experts = sum(4 * p.numel() for m in ternaries(model) for p in m.parameters())
    assert size["packed"] < size["full"] - 0.94 * experts
    again = hub.load(tmp_path / "packed").model
    given = model.dummy_inputs()
    with torch.no_grad():  # inputs are rounded to 8 bits, where a last bit can count
        torch.testing.assert_close(again(**given).logits, model(**given).logits, rtol=0, atol=5e-4)
    for ours, theirs in zip(ternaries(again), ternaries(model), strict=True):
        assert not torch.equal(ours.down_proj, theirs.down_proj)
        for seen, wanted in zip(ours.weights()[:2], theirs.weights()[:2], strict=True):
            assert torch.equal(seen.sign(), wanted.sign())
            torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=0)
    with pytest.raises(ZooError, match="no ternary experts to pack"):
        hub.save(tmp_path / "none", zoo.create_model("vision_language/llava_tiny"), pack=True)
    other = zoo.create_model("vision_language/mote_tiny", **{"language.stack.moe.num_experts": 3})
    with pytest.raises(ZooError, match="packed for other sizes"):
        unpacked(other, hub.folder.Tensors([tmp_path / "packed" / "model.safetensors"]))


def ternaries(model: torch.nn.Module) -> list[Ternary]:
    return [m for m in model.modules() if isinstance(m, Ternary)]
