"""Our RMSNorm and rotary positions against PyTorch's own operations, with every gradient."""

from __future__ import annotations

import pytest
import torch

from zoo.nn.norm import RMSNorm
from zoo.nn.rotary import angles, turned


@pytest.mark.parametrize("shape", [(8,), (1, 8), (0, 8), (3, 5, 8)])
def test_rms_norm_is_the_library_s(shape):
    ours, theirs = (made(8, eps=1e-3, dtype=torch.float64) for made in (RMSNorm, torch.nn.RMSNorm))
    with torch.no_grad():
        ours.weight.copy_(torch.randn(8))
        theirs.weight.copy_(ours.weight)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    grad = torch.randn_like(x)
    for module, value in ((ours, x), (theirs, y)):
        module(value).backward(grad)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_second_derivatives_and_other_types():
    norm = RMSNorm(4, eps=1e-3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, weight))
    half = torch.randn(3, 4, dtype=torch.bfloat16)
    assert RMSNorm(4, eps=1e-3, dtype=torch.bfloat16)(half).dtype == torch.bfloat16


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_is_a_rotation_and_its_gradient_turns_back(interleaved):
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    position = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
    cos, sin = (part.double() for part in angles(position, 100.0, 6))
    y = turned(x, cos, sin, interleaved)
    pairs = torch.view_as_complex(
        x.unflatten(-1, (3, 2)).contiguous() if interleaved else torch.stack(x.split(3, -1), -1)
    )
    wanted = torch.view_as_real(pairs * torch.complex(cos, sin))
    wanted = wanted.flatten(-2) if interleaved else torch.cat([wanted[..., 0], wanted[..., 1]], -1)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(turned(x.detach(), cos, sin, interleaved), wanted.detach())
    assert torch.autograd.gradcheck(lambda x: turned(x, cos, sin, interleaved), (x,))
    assert torch.autograd.gradgradcheck(lambda x: turned(x, cos, sin, interleaved), (x,))
