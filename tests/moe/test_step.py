"""The step that schedules see is the trainer's: under accumulation, in validation, after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import config as zc
from zoo.moe import RouteContext, Routing
from zoo.nn import Transformer, TransformerConfig
from zoo.train.module import Module
from zoo.train.recipe import Optim, Stage
from zoo.train.task import Batch, Loss, Task
from zoo_kernels import ops


class Recorder(Task):
    """Notes the step that the model's contexts would carry."""

    monitor = "nothing"

    def __init__(self) -> None:
        super().__init__(None)
        self.trained: list[int | None] = []
        self.evaluated: list[int | None] = []

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        y, routing = self.run(model, batch)
        self.trained.append(model.balancers.context().step)
        return Loss(y.square().mean(), routing)

    def update(self, metrics: Any, model: nn.Module, batch: Batch) -> None:
        self.run(model, batch)
        self.evaluated.append(model.balancers.context().step)

    def run(self, model: nn.Module, batch: Any) -> tuple[Tensor, Routing]:
        result: tuple[Tensor, Routing] = model(batch)
        return result


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's, in this process
def test_schedules_follow_the_trainer(tmp_path: Path) -> None:
    moe = {"num_experts": 4, "balance": {"switch": {"coef": 0.1}}}
    config = zc.make(TransformerConfig, hidden_size=8, num_layers=1, mixer={"num_heads": 2}, moe=moe)
    loader: Any = DataLoader(torch.randn(40, 3, 8), batch_size=2)

    def fit(steps: int, resume: Path | None) -> Recorder:
        task = Recorder()
        trainer = L.Trainer(
            max_steps=steps,
            accumulate_grad_batches=2,
            accelerator="cpu",
            limit_val_batches=1,
            val_check_interval=2,
            num_sanity_val_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module(Transformer(config), task, Optim(), Stage(steps=10), {})
        trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return task

    with ops.use_backend("reference"):
        first = fit(3, None)
        second = fit(5, tmp_path / "last.ckpt")
    assert first.trained == [0, 0, 1, 1, 2, 2]
    assert second.trained == [3, 3, 4, 4]
    assert set(first.evaluated + second.evaluated) == {None}, "validation scores the model as it would be finished"


def test_a_schedule_is_compiled_a_few_times_not_once_a_step() -> None:
    """The step is a Python int: the compiler makes it a symbol when it first changes, and knows the end apart."""
    torch.compiler.reset()
    made = zc.build("activation", {"name": "softmax", "start": 4.0, "steps": 10}, 8)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(made, backend=backend, fullgraph=True)
    x = torch.randn(6, 8)
    for step in range(15):
        torch.testing.assert_close(compiled(x, RouteContext(step=step)), made(x, RouteContext(step=step)))
    assert len(graphs) <= 3
