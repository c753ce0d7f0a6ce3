"""The MoE layers of models of transformers: where they are, what their gates decide, and their experts one by one.

Legend: T tokens, K slots, E experts, D model width, F inner width, N pairs T * K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.spec import ZooError

Choose = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
GATES = ("gate", "router")
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
# Names of an expert's matrices where every expert is a module: w1, w3, w2 in Mixtral and Phi.
MATRICES = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3", "fc1"), "down": ("down_proj", "w2", "fc2")}
# Blocks of transformers 4 whose gate is a plain linear layer: softmax over all experts, then top-k, then sum 1 (True)
# or as the block's norm_topk_prob says (None).
SOFTMAX_TOPK = {
    "MixtralSparseMoeBlock": True, "OlmoeSparseMoeBlock": None, "Qwen2MoeSparseMoeBlock": None,
    "Qwen3MoeSparseMoeBlock": None,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """An MoE layer of somebody else's model: the modules themselves."""

    name: str
    block: nn.Module
    gate: nn.Module
    experts: nn.Module
    shared: nn.Module | None

    @property
    def fused(self) -> bool:
        """All experts in one tensor a matrix, of a family that says how they lie in it."""
        return not isinstance(self.experts, nn.ModuleList) and hasattr(self.experts, "is_transposed")

    @property
    def num_experts(self) -> int:
        return len(self.experts) if isinstance(self.experts, nn.ModuleList) else int(self.experts.num_experts)  # type: ignore[arg-type]

    @property
    def conventions(self) -> dict[str, Any]:
        """What the gate says about itself: ``k``, whether weights are made to sum to 1 (``renorm``), the factor on them
        (``scale``), a bias on the choice alone (``select_bias``), groups and how many of them a token may use; None for
        what it does not say."""
        said: dict[str, Any] = {}
        for key, names in {
            "k": ("top_k", "num_experts_per_tok"),
            "renorm": ("norm_topk_prob",),
            "scale": ("routed_scaling_factor",),
            "select_bias": ("e_score_correction_bias",),
            "groups": ("num_group", "n_group"),
            "groups_used": ("topk_group",),
        }.items():
            found = (getattr(place, n) for n in names for place in (self.gate, self.block) if hasattr(place, n))
            said[key] = next(found, None)
        return said

    def view(self, e: int) -> dict[str, Tensor]:
        """The weights of expert ``e``: ``gate`` (F, D) if there is one, ``up`` (F, D), ``down`` (D, F), and
        ``gate_bias`` and so on. Views of the model's own tensors."""
        if not 0 <= e < self.num_experts:
            raise ZooError(f"{self.name} has no expert {e}; it has {self.num_experts}")
        if isinstance(self.experts, nn.ModuleList):
            return _view_of(self.name, self.experts[e])
        m: Any = self.fused_experts()
        halves = (lambda w: w.chunk(2)) if m.is_concatenated else (lambda w: (w[::2], w[1::2]))
        w_in, w_out = (m.gate_up_proj if m.has_gate else m.up_proj).detach()[e], m.down_proj.detach()[e]
        if m.is_transposed:
            w_in, w_out = w_in.mT, w_out.mT
        view = dict(zip(("gate", "up"), halves(w_in), strict=True)) if m.has_gate else {"up": w_in}
        view["down"] = w_out
        if m.has_bias:
            b_in = (m.gate_up_proj_bias if m.has_gate else m.up_proj_bias).detach()[e]
            view |= dict(zip(("gate_bias", "up_bias"), halves(b_in), strict=True)) if m.has_gate else {"up_bias": b_in}
            view["down_bias"] = m.down_proj_bias.detach()[e]
        return view

    def fused_experts(self) -> nn.Module:
        if not self.fused:
            raise ZooError(
                f"{self.name}: {type(self.experts).__name__} does not say how its experts lie in its tensors; only "
                "those of transformers' experts interface and a ModuleList of experts can be looked into"
            )
        return self.experts


@dataclass(frozen=True)
class Decision:
    """What a gate said about its input ``x_TD``."""

    x_TD: Tensor
    logits_TE: Tensor | None
    weight_TK: Tensor
    index_TK: Tensor


def find_layers(model: nn.Module) -> Iterator[Layer]:
    """The MoE blocks of a model in the order of its modules."""
    for name, block in model.named_modules():
        experts = getattr(block, "experts", None)
        gate = next((g for n in GATES if isinstance(g := getattr(block, n, None), nn.Module)), None)
        many = isinstance(experts, nn.ModuleList) or hasattr(experts, "num_experts")
        if isinstance(experts, nn.Module) and many and gate is not None:
            shared = next((s for n in SHARED if isinstance(s := getattr(block, n, None), nn.Module)), None)
            yield Layer(name, block, gate, experts, shared)


@contextmanager
def watching(layer: Layer, see: Callable[[Layer, Decision], None], choose: Choose | None) -> Iterator[None]:
    """Reads the gate's (logits, weight, index); a gate that gives logits alone leaves the choice to what the experts
    are called with, or to `_choose`."""
    waiting: dict[str, Tensor] = {}

    def gate_hook(_: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], out: Any) -> None:
        x = arguments[0] if arguments else next(iter(keywords.values()))
        x_TD = x.reshape(-1, x.shape[-1])
        if isinstance(out, tuple) and len(out) == 3 and not out[2].is_floating_point():
            logits, weight, index = (t.reshape(-1, t.shape[-1]) for t in out)
            see(layer, Decision(x_TD, logits, weight, index))
        elif isinstance(out, Tensor):
            logits = out.reshape(-1, out.shape[-1])
            if isinstance(layer.experts, nn.ModuleList):
                see(layer, Decision(x_TD, logits, *(choose or _choose)(layer.block, logits)))
            else:
                waiting.update(x_TD=x_TD, logits_TE=logits)
        else:
            raise ZooError(
                f"{layer.name}: {type(layer.gate).__name__} gives neither (logits, weight, index) nor logits"
            )

    def experts_hook(_: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        if waiting:
            _, index, weight = (*arguments, *keywords.values())[:3]
            see(layer, Decision(weight_TK=weight, index_TK=index, **waiting))
            waiting.clear()

    handles = [layer.gate.register_forward_hook(gate_hook, with_kwargs=True)]
    if not isinstance(layer.experts, nn.ModuleList):
        handles.append(layer.experts.register_forward_pre_hook(experts_hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _choose(block: nn.Module, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    family = type(block).__name__
    if family not in SOFTMAX_TOPK:
        raise ZooError(
            f"the gate of {family} gives logits alone, and how it chooses is not known; give Adapter a choose"
        )
    any_block: Any = block
    weight_TK, index_TK = logits_TE.float().softmax(-1).topk(any_block.top_k, -1)
    if any_block.norm_topk_prob if SOFTMAX_TOPK[family] is None else True:
        weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
    return weight_TK, index_TK


def matrix(where: str, expert: nn.Module, which: str) -> nn.Linear:
    found = next((m for n in MATRICES[which] if isinstance(m := getattr(expert, n, None), nn.Linear)), None)
    if found is None:
        raise ZooError(f"{where}: {type(expert).__name__} has no matrix {which} under a known name ({MATRICES[which]})")
    return found


def _view_of(where: str, expert: nn.Module) -> dict[str, Tensor]:
    view = {}
    for which in MATRICES:
        if which == "gate" and not any(hasattr(expert, name) for name in MATRICES["gate"]):
            continue
        linear = matrix(where, expert, which)
        view[which] = linear.weight.detach()
        if linear.bias is not None:
            view[f"{which}_bias"] = linear.bias.detach()
    return view
