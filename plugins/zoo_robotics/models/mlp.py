"""The plain rival: an MLP from one state to a chunk of actions, with the same heads as ACT.

Shapes: B batch, S state, K actions of a chunk, A numbers of an action, P phases, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Routing
from zoo_robotics.models.policy import Batch, Chunk, Policy, PolicyConfig, known, masked_mean


class Output(NamedTuple):
    actions_BKA: Tensor
    gate_BKP: Tensor | None
    routing: Routing


class MLPPolicy(Policy):
    """``h = silu(W_1 x + e_task)``, further hidden layers, and a head that says the whole chunk at once: a mixture of
    phase experts decides once for a chunk, by the phase of its first action.

    Config:
        trunk: widths of the hidden layers.
    """

    @dataclass
    class Config(PolicyConfig):
        trunk: list[int] = field(default_factory=lambda: [128, 128])
        head: Any = zc.part("head", "robotics/dense")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c, widths = config, [config.state, *config.trunk]
        self.head = zc.build("head", c.head, widths[-1], c.chunk * c.actions, len(c.phases))
        self.task = nn.Embedding(len(c.tasks), c.trunk[0])
        self.trunk = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(
        self,
        observation_BS: Tensor,
        task_B: Tensor,
        phase_BK: Tensor | None = None,
    ) -> Output:
        """A chunk from raw observations."""
        x_BD = self.normalised(observation_BS)
        for n, layer in enumerate(self.trunk):
            x_BD = F.silu(layer(x_BD) + self.task(task_B) if n == 0 else layer(x_BD))
        label_B1 = None if phase_BK is None else phase_BK[:, :1]
        y_B1O, gate_B1P, routing = self.head(x_BD[:, None], None, label_B1)
        gate_BKP = None if gate_B1P is None else gate_B1P.expand(-1, self.chunk, -1)
        return Output(y_B1O.view(len(x_BD), self.chunk, -1), gate_BKP, routing)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Routing]:
        out = self(**known(batch))
        wrong_BKA = (out.actions_BKA - batch["actions"]).abs()
        return {"action": masked_mean(wrong_BKA, batch.get("valid"))}, out.routing

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator | None = None) -> Chunk:
        out = self(**known(batch))
        return Chunk(out.actions_BKA.clamp(-1, 1), out.gate_BKP)
