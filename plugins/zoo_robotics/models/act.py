"""ACT, action chunking with transformers (arXiv:2304.13705): a conditional variational autoencoder over chunks of
actions. MoE-ACT (arXiv:2601.21971) is ACT with the head ``robotics/mixture`` over its action queries.

Dropout (0.1 in the papers) is left out: the stack has none.

Shapes: B batch, S state, K actions of a chunk, A numbers of an action, P phases, Z latent width, M tokens of the
memory, D width, V views, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Routing
from zoo.nn import Transformer, TransformerConfig, initialise
from zoo.spec import ZooError
from zoo_robotics.models.blocks import DecoderLayer, Eyes
from zoo_robotics.models.policy import Batch, Chunk, EyesConfig, Policy, PolicyConfig, known, masked_mean


class Output(NamedTuple):
    """``mean_BZ`` and ``logvar_BZ`` of the posterior where it was asked, for the raw actions that the head said."""

    actions_BKA: Tensor
    gate_BKP: Tensor | None
    mean_BZ: Tensor | None
    logvar_BZ: Tensor | None
    routing: Routing


def kl_divergence(mean_BZ: Tensor, logvar_BZ: Tensor) -> Tensor:
    """(B,): of N(mean, exp(logvar)) from N(0, 1), in nats, summed over the latent."""
    return 0.5 * (mean_BZ.square() + logvar_BZ.exp() - 1 - logvar_BZ).sum(-1)


class ACT(Policy):
    """An encoder of what is known (latent, state, task, pictures), a decoder of K learned queries that look into it,
    and a head on every query. A posterior of the latent sees state and actions in training; without actions z = 0.

    Config:
        stack: layers of the encoder; decoder and posterior have layers of the same parts, in numbers of their own.
        latent: width Z; 0 leaves the posterior out.
        kl: weight of the divergence of the posterior.
        binary: places of actions that are yes or no, for which the head says a logit: trained by cross-entropy with
            weight ``binary_weight``, carried out as -1 or 1.
    """

    @dataclass
    class Config(PolicyConfig):
        stack: TransformerConfig = field(default_factory=TransformerConfig)
        decoder_layers: int = 1
        posterior_layers: int = 1
        latent: int = 32
        kl: float = 10.0
        head: Any = zc.part("head", "robotics/dense")
        eyes: EyesConfig = field(default_factory=EyesConfig)
        binary: list[int] = field(default_factory=list)
        binary_weight: float = 0.05

        def __post_init__(self) -> None:
            super().__post_init__()
            zc.at_least(1, self, "decoder_layers", "posterior_layers")
            zc.at_least(0, self, "latent", "kl", "binary_weight")
            if not set(self.binary) <= set(range(self.actions)):
                raise ZooError(f"binary={self.binary} must be places of the {self.actions} numbers of an action")
            if self.stack.causal or self.stack.feed_forward["name"] == "moe":
                raise ZooError("ACT's layers see all and are dense: set stack.causal=false, stack.feed_forward=dense")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        c, width = config, config.stack.hidden_size
        # Before the stacks: the trainer takes the first balancers that a model has.
        self.head = zc.build("head", c.head, width, c.actions, len(c.phases))
        self.encoder = Transformer(c.stack)
        self.decoder = nn.ModuleList(DecoderLayer(c.stack) for _ in range(c.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.state_in, self.task = nn.Linear(c.state, width), nn.Embedding(len(c.tasks), width)
        self.place = nn.Embedding(3 if c.latent else 2, width)
        self.query = nn.Embedding(c.chunk, width)
        self.eyes = Eyes(c.eyes, width) if c.eyes.views else None
        if c.latent:
            self.posterior = Transformer(replace(c.stack, num_layers=c.posterior_layers))
            self.posterior_place = nn.Embedding(c.chunk + 2, width)
            self.posterior_state, self.posterior_actions = nn.Linear(c.state, width), nn.Linear(c.actions, width)
            self.posterior_out, self.latent_in = nn.Linear(width, 2 * c.latent), nn.Linear(c.latent, width)
        initialise(self.decoder, c.stack.init_std)

    def forward(
        self,
        observation_BS: Tensor,
        task_B: Tensor,
        actions_BKA: Tensor | None = None,
        valid_BK: Tensor | None = None,
        phase_BK: Tensor | None = None,
        images_BVCHW: Tensor | None = None,
    ) -> Output:
        """A chunk from raw observations. With the demonstration's actions z is drawn from their posterior in training,
        and its mean in evaluation; without them it is 0."""
        c, state_BS = self.config, self.normalised(observation_BS)
        tokens, mean_BZ, logvar_BZ = [self.state_in(state_BS), self.task(task_B)], None, None
        if c.latent:
            latent_BZ = state_BS.new_zeros(len(state_BS), c.latent)
            if actions_BKA is not None:
                mean_BZ, logvar_BZ = self.infer(state_BS, actions_BKA, valid_BK)
                latent_BZ = mean_BZ
                if self.training:
                    latent_BZ = mean_BZ + (0.5 * logvar_BZ).exp() * torch.randn_like(mean_BZ)
            tokens.append(self.latent_in(latent_BZ))
        x_BMD = torch.stack(tokens, 1) + self.place.weight
        if self.eyes is not None:
            if images_BVCHW is None:
                raise ZooError("this policy sees: give it images, or make one with eyes.views=0")
            x_BMD = torch.cat([x_BMD, self.eyes(images_BVCHW)], 1)
        memory_BMD, _ = self.encoder(x_BMD)
        x_BKD = self.query.weight.expand(len(x_BMD), -1, -1)
        for layer in self.decoder:
            x_BKD = layer(x_BKD, memory_BMD)
        y_BKA, gate_BKP, routing = self.head(self.decoder_norm(x_BKD), valid_BK, phase_BK)
        return Output(y_BKA, gate_BKP, mean_BZ, logvar_BZ, routing)

    def infer(self, state_BS: Tensor, actions_BKA: Tensor, valid_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, Z) of the posterior, from a normalised state and the actions that were taken; those
        of padded steps are not looked at."""
        first_B2D = torch.stack([torch.zeros_like(s := self.posterior_state(state_BS)), s], 1)
        x_BLD = torch.cat([first_B2D, self.posterior_actions(actions_BKA)], 1) + self.posterior_place.weight
        valid_BL = None if valid_BK is None else F.pad(valid_BK, (2, 0), value=True)
        states_BLD, _ = self.posterior(x_BLD, valid_BL)
        mean_BZ, logvar_BZ = self.posterior_out(states_BLD[:, 0]).chunk(2, -1)
        return mean_BZ, logvar_BZ

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Routing]:
        out = self(**self._known(batch), actions_BKA=batch["actions"])
        terms = self._action_losses(out.actions_BKA, batch["actions"], batch.get("valid"))
        if out.mean_BZ is not None:
            terms["kl"] = self.config.kl * kl_divergence(out.mean_BZ, out.logvar_BZ).mean()
        return terms, out.routing

    def _action_losses(self, said_BKA: Tensor, true_BKA: Tensor, valid_BK: Tensor | None) -> dict[str, Tensor]:
        binary = self.config.binary
        steady = [place for place in range(said_BKA.shape[-1]) if place not in binary]
        terms = {"action": masked_mean((said_BKA - true_BKA).abs()[..., steady], valid_BK)}
        if binary:
            yes_BKA = (true_BKA[..., binary] > 0).float()
            wrong_BKA = F.binary_cross_entropy_with_logits(said_BKA[..., binary], yes_BKA, reduction="none")
            terms["binary"] = self.config.binary_weight * masked_mean(wrong_BKA, valid_BK)
        return terms

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator | None = None) -> Chunk:
        out = self(**self._known(batch))
        actions_BKA = out.actions_BKA
        if self.config.binary:
            actions_BKA = actions_BKA.clone()
            said = actions_BKA[..., self.config.binary]
            actions_BKA[..., self.config.binary] = torch.where(said.isnan(), said, (said > 0) * 2.0 - 1)
        return Chunk(actions_BKA.clamp(-1, 1), out.gate_BKP)

    def _known(self, batch: Batch) -> dict[str, Tensor]:
        return known(batch, "valid", *(["images"] if self.eyes is not None else []))

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        c, inputs = self.config, super().dummy_inputs(batch_size)
        inputs["actions_BKA"] = torch.rand(batch_size, c.chunk, c.actions) * 2 - 1
        inputs["valid_BK"] = torch.arange(c.chunk).expand(batch_size, -1) < max(1, c.chunk - 1)
        if c.eyes.views:
            size = c.eyes.size
            inputs["images_BVCHW"] = torch.randint(0, 256, (batch_size, c.eyes.views, 3, size, size), dtype=torch.uint8)
        return inputs
