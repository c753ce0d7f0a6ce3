"""Taps on the experts of models of transformers: see and replace what goes in, the inner units, and what comes out.

Legend: T tokens, K slots, E experts, D model width, F inner width, N pairs T * K.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zoo.integrations.layers import Choose, Decision, Layer, matrix, watching
from zoo.moe.experts.base import Taps
from zoo.moe.experts.grouped import grouped_linear
from zoo.spec import ZooError
from zoo_kernels import ops
from zoo_kernels.plan import Plan


@contextmanager
def tapped_fused(layer: Layer, taps: Taps) -> Iterator[None]:
    m: Any = layer.fused_experts()

    def tap(point: str, rows: Tensor, plan: Plan) -> Tensor:
        seen_by = getattr(taps, point)
        other = None if seen_by is None else seen_by(rows, plan)
        return rows if other is None else other

    def forward(hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        plan = ops.plan(index_TK.clamp(max=m.num_experts - 1), m.num_experts, index_TK < m.num_experts)
        w_in, w_out = (m.gate_up_proj if m.has_gate else m.up_proj), m.down_proj
        b_in = b_out = None
        if m.has_bias:
            b_in, b_out = (m.gate_up_proj_bias if m.has_gate else m.up_proj_bias), m.down_proj_bias
        if m.is_transposed:
            w_in, w_out = w_in.mT, w_out.mT
        rows_ND = tap("input", ops.expand(hidden_TD, plan), plan)
        inner = grouped_linear(rows_ND, w_in, plan, b_in)
        atomic_NF = tap("atomic", m._apply_gate(inner) if m.has_gate else m.act_fn(inner), plan)
        y_ND = grouped_linear(atomic_NF, w_out, plan, b_out)
        if m.has_post_expert_norm:
            y_ND = m.post_expert_norm(y_ND)
        return ops.combine(tap("output", y_ND, plan), weight_TK.reshape(-1).to(y_ND.dtype), plan)

    before = m.__dict__.get("forward")
    m.forward = forward  # of this module alone: the class, its config and its experts implementation stay as they are
    try:
        yield
    finally:
        if before is None:
            del m.forward
        else:
            m.forward = before


@contextmanager
def tapped_modules(layer: Layer, taps: Taps, choose: Choose | None) -> Iterator[None]:
    current: dict[str, Any] = {}

    def see(_: Layer, decision: Decision) -> None:
        current["decision"] = decision

    def entering(e: int, x: Tensor) -> Tensor:
        current["plan"] = _plan_of(layer, e, x, current["decision"])
        return _answer(taps.input, x, current["plan"])

    handles = []
    for e, expert in enumerate(layer.experts):  # type: ignore[arg-type]
        handles.append(expert.register_forward_pre_hook(lambda _m, a, e=e: (entering(e, a[0]), *a[1:])))
        down = matrix(layer.name, expert, "down")
        handles.append(
            down.register_forward_pre_hook(lambda _m, a: (_answer(taps.atomic, a[0], current["plan"]), *a[1:]))
        )
        handles.append(expert.register_forward_hook(lambda _m, _a, out: _answer(taps.output, out, current["plan"])))
    try:
        with watching(layer, see, choose):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _answer(tap: Any, rows: Tensor, plan: Plan) -> Tensor:
    other = None if tap is None or not len(rows) else tap(rows, plan)
    return rows if other is None else other


def _plan_of(layer: Layer, e: int, x_ND: Tensor, decision: Decision) -> Plan:
    """The plan of the rows that one expert's module is called with: it lists tokens in order, or slot by slot. Raises
    `ZooError` when the rows are neither."""
    index_TK = decision.index_TK
    slots = index_TK.shape[1]
    token_N, slot_N = (index_TK == e).nonzero(as_tuple=True)
    by_slot_N = slot_N.argsort(stable=True)
    for order_N in (torch.arange(len(token_N), device=token_N.device), by_slot_N):
        token, slot = token_N[order_N], slot_N[order_N]
        if x_ND.shape == (len(token), decision.x_TD.shape[1]) and torch.equal(
            x_ND, decision.x_TD[token].to(x_ND.dtype)
        ):
            offset_E1 = torch.zeros(layer.num_experts + 1, dtype=torch.int64, device=token.device)
            offset_E1[e + 1 :] = len(token)
            return Plan(token, token * slots + slot, offset_E1, len(index_TK), layer.num_experts)
    raise ZooError(
        f"{layer.name}: expert {e} is called with {len(x_ND)} rows in an order that is not known; no taps here"
    )
