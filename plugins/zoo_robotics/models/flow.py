"""A flow-matching action expert as in pi0 (arXiv:2410.24164), alone: tokens of noisy actions attend to those of state
and task and say which way the true actions lie. AdaMoE-VLA (arXiv:2510.14300) puts mixtures of experts, chosen by the
softmax and weighed by that plus a scale of its own, into its layers: ``stack.moe.router.weigher=decoupled_scale``.

Time runs from 1, noise, to 0, actions, as in pi0's code.

Shapes: B batch, S state, K actions of a chunk, A numbers of an action, L = 2 + K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Routing
from zoo.nn import Transformer, TransformerConfig
from zoo.spec import ZooError
from zoo_robotics.models.blocks import sine
from zoo_robotics.models.policy import Batch, Chunk, Policy, PolicyConfig, known, masked_mean

PERIODS = (4e-3, 4.0)
"""Shortest and longest period of the sines that tell the time (pi0)."""


class Output(NamedTuple):
    velocity_BKA: Tensor
    routing: Routing


def between(actions_BKA: Tensor, noise_BKA: Tensor, time_B: Tensor) -> Tensor:
    """``x_t = t z + (1 - t) a``, the straight way from noise at t = 1 to actions at t = 0; its velocity is
    ``dx/dt = z - a``."""
    t_B11 = time_B.view(-1, 1, 1)
    return t_B11 * noise_BKA + (1 - t_B11) * actions_BKA


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise_BKA: Tensor, steps: int) -> Tensor:
    """From t = 1 to 0 in equal steps: ``x <- x - v(x, t) / steps``."""
    x_BKA = noise_BKA
    for n in range(steps):
        x_BKA = x_BKA - velocity(x_BKA, x_BKA.new_full((len(x_BKA),), 1 - n / steps)) / steps
    return x_BKA


class FlowPolicy(Policy):
    """State and task see each other; actions see both and all actions. The time goes into every action's token.

    Config:
        stack: its feed-forward is dense or a mixture.
        steps: of Euler's method when it acts.
        beta: time is drawn as ``0.001 + 0.999 u``, u ~ Beta(beta, 1), so that noisy ones come more often (pi0: 1.5).
    """

    @dataclass
    class Config(PolicyConfig):
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        steps: int = 10
        beta: float = 1.5

        def __post_init__(self) -> None:
            super().__post_init__()
            zc.at_least(1, self, "steps")
            if self.beta <= 0:
                raise ZooError(f"beta={self.beta} must be above 0")
            if self.stack.causal:
                raise ZooError("an action expert sees all actions of a chunk; set stack.causal=false")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c, width = config, config.stack.hidden_size
        self.stack = Transformer(c.stack)
        self.state_in, self.task = nn.Linear(c.state, width), nn.Embedding(len(c.tasks), width)
        self.action_in, self.action_out = nn.Linear(c.actions, width), nn.Linear(width, c.actions)
        self.time_in, self.time_out = nn.Linear(2 * width, width), nn.Linear(width, width)

    def forward(
        self,
        observation_BS: Tensor,
        task_B: Tensor,
        noisy_BKA: Tensor,
        time_B: Tensor,
        valid_BK: Tensor | None = None,
        phase_BK: Tensor | None = None,
    ) -> Output:
        """The velocity at noisy actions; padded actions are neither seen nor routed."""
        width = self.config.stack.hidden_size
        known_B2D = torch.stack([self.state_in(self.normalised(observation_BS)), self.task(task_B)], 1)
        time_BKD = sine(time_B, width, *PERIODS)[:, None].expand(-1, self.chunk, -1)
        x_BKD = self.time_out(F.silu(self.time_in(torch.cat([self.action_in(noisy_BKA), time_BKD], -1))))
        x_BLD = torch.cat([known_B2D, x_BKD], 1)
        # What has a negative number is seen by all, but sees only itself (see `zoo.nn.Span`).
        document_BL = F.pad(torch.zeros_like(noisy_BKA[..., 0], dtype=torch.int64), (2, 0), value=-1)
        valid_BL = None if valid_BK is None else F.pad(valid_BK, (2, 0), value=True)
        label_BL = None if phase_BK is None else F.pad(phase_BK, (2, 0), value=-1)
        states_BLD, routing = self.stack(x_BLD, valid_BL, document_BL=document_BL, label=label_BL)
        return Output(self.action_out(states_BLD[:, 2:]), routing)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Routing]:
        actions_BKA, valid_BK = batch["actions"], batch.get("valid")
        noise_BKA = torch.randn_like(actions_BKA)
        # The inverse of the distribution function of Beta(beta, 1).
        time_B = 0.001 + 0.999 * torch.rand_like(actions_BKA[:, 0, 0]) ** (1 / self.config.beta)
        noisy_BKA = between(actions_BKA, noise_BKA, time_B)
        out = self(**known(batch, "valid"), noisy_BKA=noisy_BKA, time_B=time_B)
        wrong_BKA = (out.velocity_BKA - (noise_BKA - actions_BKA)).square()
        return {"action": masked_mean(wrong_BKA, valid_BK)}, out.routing

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator | None = None) -> Chunk:
        """Noise is drawn with ``generator``, on the CPU: the same on every device."""
        shape = (len(batch["observation"]), self.chunk, self.config.actions)
        noise_BKA = torch.randn(shape, generator=generator).to(batch["observation"])

        def velocity(x_BKA: Tensor, time_B: Tensor) -> Tensor:
            out: Output = self(**known(batch), noisy_BKA=x_BKA, time_B=time_B)
            return out.velocity_BKA

        return Chunk(euler(velocity, noise_BKA, self.config.steps).clamp(-1, 1))

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        c = self.config
        return {
            **super().dummy_inputs(batch_size),
            "noisy_BKA": torch.randn(batch_size, c.chunk, c.actions),
            "time_B": torch.linspace(0.1, 0.9, batch_size),
        }
