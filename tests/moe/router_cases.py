"""One small layer for every registered part of a router, each with plain partners.

Shapes: B batch, L length, D model width, E experts, C conditioning width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo import config as zc
from zoo import registry
from zoo.moe import Balancers, MoE, MoEConfig, RouteContext

B, L, D, E, C = 2, 7, 8, 6, 5
KINDS = ("unit", "scorer", "logit_hook", "activation", "select_hook", "selector", "capacity", "weigher")
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("unit", "segment"): {"length": 3},
    ("scorer", "cosine"): {"rank": 4},
    ("scorer", "mlp"): {"hidden": [7], "dropout": 0.1},
    ("scorer", "recurrent"): {"size": 4},
    ("scorer", "conditional"): {"size": C},
    ("scorer", "comet"): {"entropy": 0.1},
    ("logit_hook", "stochastic_warmup"): {"steps": 10},
    ("logit_hook", "local_search"): {"steps": 10},
    ("logit_hook", "grow_pool"): {"own": 3, "steps": 10},
    ("logit_hook", "modality_mask"): {"groups": [[0, 1, 2], [2, 3, 4, 5]]},
    ("logit_hook", "steer"): {"experts": [1]},
    ("activation", "softmax"): {"start": 4.0, "steps": 10},
    ("select_hook", "bias"): {"values": [0.1, 0.0, -0.1, 0.0, 0.2, 0.0]},
    ("select_hook", "modality_mask"): {"groups": [[0, 1, 2], [2, 3, 4, 5]]},
    ("select_hook", "group_limit"): {"groups": 3, "keep": 2},
    ("select_hook", "steer"): {"experts": [1], "force": True},
    ("selector", "topk"): {"layers": [3], "steps": 10},
    ("selector", "group_topk"): {"k": 2, "groups": 2},
    ("selector", "expert_choice"): {"inference": "causal", "scope": "sequence"},
    ("selector", "token_rounding"): {"tile": 3},
    ("capacity", "factor"): {"train": 0.5, "minimum": 1, "drop": "score"},
    ("capacity", "heterogeneous"): {"num_zero": 2},
    ("weigher", "gather"): {"renorm": True, "num_null": 1},
    ("weigher", "joint_softmax"): {"num_shared": 2, "renorm": True},
}
PARTNERS: dict[tuple[str, str], dict[str, Any]] = {
    ("scorer", "none"): {"weigher": "uniform", "selector": "label"},
    ("scorer", "comet"): {"selector": "threshold"},
    ("activation", "identity"): {"weigher": "chosen_softmax"},
    ("selector", "label"): {"scorer": "none", "weigher": "uniform"},
    ("selector", "modality"): {"scorer": "none", "weigher": "uniform"},
    ("selector", "hash"): {"scorer": "none", "weigher": "uniform"},
    ("selector", "forced"): {"scorer": "none", "weigher": "uniform"},
    ("weigher", "uniform"): {"scorer": "none", "selector": "label"},
    ("weigher", "sparsemixer"): {"hooks": {"gumbel": {"log": True}}},
}
PARTS = [(kind, name) for kind in KINDS for name in registry.entries(kind)]


def layer(kind: str, name: str, **moe: Any) -> MoE:
    """A mixture layer whose router is composed of plain parts and the one in question."""
    settings = SETTINGS.get((kind, name), {})
    router: dict[str, Any] = {"name": "composed", **PARTNERS.get((kind, name), {})}
    if kind in ("logit_hook", "select_hook"):
        router["logit_hooks" if kind == "logit_hook" else "hooks"] = {name: settings}
    elif kind == "unit":
        moe["unit"] = {"name": name, **settings}
    elif kind == "router":
        router = {"name": name, **settings}
    else:
        router[kind] = {"name": name, **settings}
    if "num_shared" in getattr(registry.find(kind, name).load().Config, "__dataclass_fields__", {}):
        moe["shared"] = {"name": "swiglu", "intermediate_size": 4}
    config = zc.make(MoEConfig, num_experts=E, router=router, experts={"name": "swiglu", "intermediate_size": 4}, **moe)
    made = MoE(config, D)
    made.reset_parameters(0.5)
    return made


def context(made: MoE, lead: tuple[int, ...] = (B, L), step: int | None = 3, **fields: Any) -> RouteContext:
    """A context with every field: padding at the end of the second sequence, two modalities."""
    valid = torch.ones(lead, dtype=torch.bool)
    valid[1:, -2:] = False
    given: dict[str, Tensor] = {
        "valid": valid,
        "token_ids": torch.randint(0, 50, lead),
        "modality": torch.randint(0, 2, lead),
        "label": torch.randint(0, E, lead[:1]),
        "domain": torch.randint(0, E, lead),
        "cond": torch.randn(*lead[:1], C),
    }
    return RouteContext(step=step, common=made.router.common(), **{**given, **fields})


def biased(values: list[float]) -> Balancers:
    """Balancers whose bias on every layer is ``values``."""
    balancers = Balancers({}, 1, E)
    balancers.bias = lambda layer, scores_TE, valid_T: torch.tensor(values)  # type: ignore[method-assign]
    return balancers
