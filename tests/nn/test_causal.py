"""Causal attention with a gradient of its own is the library's."""

import pytest
import torch
import torch.nn.functional as F

from zoo.nn import causal


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(causal, "LONG", 1)
    monkeypatch.setattr(causal, "BLOCK", 4)


def inputs(heads, groups, length, dtype=torch.float32):
    torch.manual_seed(0)
    widths = ((heads, 3), (groups, 3), (groups, 5))  # latent attention has values of a width of their own
    layout = [torch.randn(2, length, h, c, dtype=dtype).transpose(1, 2) for h, c in widths]
    return [x.requires_grad_() for x in layout]


@pytest.mark.parametrize(("heads", "groups", "length"), [(4, 2, 11), (3, 3, 8), (4, 1, 3), (1, 1, 1)])
def test_it_is_the_library_s(heads, groups, length):
    x = inputs(heads, groups, length)
    y = causal.causal_attention(*x)
    wanted = F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=heads != groups)
    torch.testing.assert_close(y, wanted)
    grad = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, grad), torch.autograd.grad(wanted, x, grad))


def test_first_and_second_derivatives():
    x = inputs(2, 1, 6, torch.float64)
    assert torch.autograd.gradcheck(causal.causal_attention, x)
    assert torch.autograd.gradgradcheck(causal.causal_attention, x)


def test_what_is_kept_for_the_backward_pass():
    """The inputs, unrepeated, and the answer: nothing of size length x length."""
    x, kept = inputs(4, 2, 64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        causal.causal_attention(*x)
    assert sum(kept) == sum(t.numel() for t in x) + 2 * 4 * 64 * 5
