"""MoLE: a mixture of linear forecasters, trained by gradient (Ni et al., AISTATS 2024, arXiv:2312.06786).

Each expert is one linear map from the window to the horizon; a router weighs them. The paper's router sees the calendar
of the first point to forecast; this one sees the window itself, so that series without dates can be forecast too.

Shapes: B windows, L context, H horizon, E experts, K chosen ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.moe import Balancers, RouterOutput, Routing
from zoo.spec import ZooError
from zoo_time_series.blocks.patching import fit_context
from zoo_time_series.models.base import Forecaster, Prediction
from zoo_time_series.models.baselines import roll_out


class Output(NamedTuple):
    """``values_BH`` and the one decision behind them."""

    values_BH: Tensor
    routing: Routing


class MoLE(Forecaster):
    """``y = sum_k w_k (W_k x + b_k)``. All experts are computed: they are small, and by default all of them count.

    Args (config):
    router, balance: named parts, as in a mixture layer.
    init_std: of the experts at the start, before it is divided by the root of the context.
    """

    @dataclass
    class Config:
        context: int = 336
        horizon: int = 48
        num_experts: int = 8
        router: Any = zc.part("router", "topk", k=8, score="softmax", renorm=False)
        balance: Any = zc.parts("balancer")
        init_std: float = 0.1

        def __post_init__(self) -> None:
            zc.at_least(1, self, "context", "horizon", "num_experts")
            zc.at_least(0, self, "init_std")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.router = zc.build("router", c.router, c.context, c.num_experts)
        self.router.reset_parameters(0.02)
        self.weight = nn.Parameter(torch.randn(c.num_experts, c.horizon, c.context) * c.init_std * c.context**-0.5)
        self.bias = nn.Parameter(torch.zeros(c.num_experts, c.horizon))
        self.balancers = Balancers(c.balance, 1, c.num_experts)

    def forward(self, x_BL: Tensor) -> Output:
        """(B, H) from standardised windows of ``context`` points."""
        valid_B = torch.ones(len(x_BL), dtype=torch.bool, device=x_BL.device)
        out: RouterOutput = self.router(x_BL, valid_B, self.balancers.context(), None)
        weight_BE = torch.zeros_like(out.logits_TE).scatter_add(1, out.index_TK, out.weight_TK)
        each_BEH = torch.einsum("bl,ehl->beh", x_BL, self.weight) + self.bias
        return Output((weight_BE.to(each_BEH.dtype)[..., None] * each_BEH).sum(1), (out,))

    def training_predictions(
        self, past_BL: Tensor, past_valid_BL: Tensor, future_BH: Tensor, future_valid_BH: Tensor, **covariates: Tensor
    ) -> tuple[list[Prediction], Routing]:
        if future_BH.shape[1] != self.config.horizon:
            found = f"the model has horizon={self.config.horizon}, the data {future_BH.shape[1]}"
            raise ZooError(f"{found}; make model.horizon and data.horizon equal")
        values_BH, routing = self(fit_context(past_BL, self.config.context))
        return [Prediction(values_BH, future_BH, future_valid_BH)], routing

    def forecast(self, past_BL: Tensor, past_valid_BL: Tensor, horizon: int, season_B: Tensor | None = None) -> Tensor:
        return roll_out(lambda x_BL: self(x_BL).values_BH, past_BL, self.config.context, horizon)

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x_BL": torch.randn(batch_size, self.config.context)}
