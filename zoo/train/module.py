"""The one LightningModule: it trains every task's models, adds the balance losses, and stops on NaN."""

from __future__ import annotations

import fnmatch
import math
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from zoo.moe import Balancers
from zoo.moe.router import Router
from zoo.spec import ZooError
from zoo.train.recipe import Optim, Stage
from zoo.train.task import Batch, Task


class Module(L.LightningModule):
    """Args:
    hparams: the resolved recipe as plain data, stored in checkpoints.
    stage: what is trained, for how long and on which losses.
    before: optimiser steps of the stages before, after which its own are logged.
    """

    def __init__(
        self, model: nn.Module, task: Task, optim: Optim, stage: Stage, hparams: dict[str, Any], before: int = 0
    ) -> None:
        super().__init__()
        self.model, self.task, self.optim, self.stage, self.before = model, task, optim, stage, before
        self.save_hyperparameters(hparams)
        found = [m for m in model.modules() if isinstance(m, Balancers)]
        self.balancers = found[0] if found else None
        routers = (module for module in model.modules() if isinstance(module, Router))
        self.routers_learn = any(p.requires_grad for router in routers for p in router.parameters())
        self.val_metrics = task.metrics()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        with nullcontext() if self.balancers is None else self.balancers.at_step(self.global_step):
            result = self.task.loss(self.model, batch)
        total, logs = result.loss, {"train/loss": result.loss, **{f"train/{k}": v for k, v in result.logs.items()}}
        terms = dict(result.terms)
        if self.balancers is not None and result.routing:
            terms |= self.balancers.loss(result.routing, self.routers_learn)
            self.balancers.observe(result.routing)
        for name in self.stage.losses:
            if name not in terms:
                raise ZooError(f"a stage scales the loss '{name}', but this model and task have {sorted(terms)}")
        for name, loss in terms.items():
            logs[f"train/{name}"] = loss
            if factor := self.stage.losses.get(name, 1.0):
                total = total + factor * loss
        if not torch.isfinite(total):
            raise ZooError(
                f"the loss is {total.item()} at step {self.global_step}; lower optim.lr, raise optim.warmup or check "
                f"the data, then go on from the last good checkpoint with resume=last"
            )
        self.log_dict({k: v.detach() for k, v in logs.items()}, prog_bar=False)
        self._count(self.global_step)
        self.log("loss", result.loss.detach(), prog_bar=True, logger=False)
        return {"loss": total, "routing": tuple(_detached(out) for out in result.routing)}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.balancers is not None:
            self.balancers.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.task.update(self.val_metrics, self.model, batch)

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": value for name, value in self.val_metrics.compute().items()}
        self.log_dict(values, prog_bar=True, sync_dist=False)
        self._count(self.global_step - 1)
        self.val_metrics.reset()

    def _count(self, step: int) -> None:
        """Loggers take the step of a line from ``step``; without it every stage would begin at 0 again."""
        if self.before:
            self.log("step", float(self.before + step), sync_dist=True)

    def configure_optimizers(self) -> Any:
        c = self.optim
        lr = c.lr if self.stage.lr is None else self.stage.lr
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        grouped: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
        for name, p in trained.items():
            factor = math.prod(f for pattern, f in self.stage.groups.items() if fnmatch.fnmatchcase(name, pattern))
            grouped.setdefault((float(factor), p.dim() >= 2), []).append(p)
        groups = [
            {"params": params, "lr": lr * factor, "weight_decay": c.weight_decay if decays else 0.0}
            for (factor, decays), params in grouped.items()
        ]
        # One pass over memory instead of a dozen. Lightning does not clip it in mixed precision; shards have their own.
        fused = self.trainer.precision == "32-true" and all(
            type(p) is nn.Parameter and p.is_floating_point() for p in trained.values()
        )
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=c.betas, fused=fused)
        steps = self.stage.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, c, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate(step: int, config: Optim, steps: int) -> float:
    """Factor on ``lr`` at a step: linear warm-up, then constant or cosine down to ``final``."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))


def _detached(out: Any) -> Any:
    return out._replace(**{k: v.detach() for k, v in out._asdict().items() if isinstance(v, Tensor)})
