"""Objectives and samplers on distributions whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.spec import ZooError
from zoo_diffusion.objectives import DDPM, RectifiedFlow
from zoo_diffusion.samplers import Ancestral, Euler, Heun

WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1])
MODES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
SPREAD = 0.1
MEAN, STD = 0.7, 0.5


def mixture(count: int) -> Tensor:
    return MODES[torch.multinomial(WEIGHTS, count, replacement=True)] + SPREAD * torch.randn(count, 2)


def objective(name: str, **settings: object):
    return zc.build("objective", zc.resolve_part("objective", {"name": f"diffusion/{name}", **settings}, "objective"))


def mode_weights(x: Tensor) -> Tensor:
    nearest = torch.cdist(x, MODES).argmin(1)
    return torch.bincount(nearest, minlength=4) / len(x)


def test_a_trained_flow_reaches_the_modes_of_a_mixture() -> None:
    flow = objective("rectified_flow", times="uniform")
    net = nn.Sequential(nn.Linear(2 + 16, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    waves = math.pi * 2.0 ** torch.arange(8)

    def predict(x: Tensor, time_B: Tensor) -> Tensor:
        angle = time_B[:, None] * waves
        return net(torch.cat([x, angle.sin(), angle.cos()], -1))

    steps = 1200
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = mixture(384)
        loss = flow.losses(predict, x, torch.randn_like(x), flow.times(torch.rand(384))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    noise = torch.randn(8000, 2)
    with torch.no_grad():
        x = Heun(Heun.Config(steps=25)).run(flow, predict, noise, lambda: torch.randn_like(noise))
    assert (mode_weights(x) - WEIGHTS).abs().max() < 0.03
    near = torch.cdist(x, MODES).min(1).values < 5 * SPREAD
    assert near.float().mean() > 0.9


def exact_flow(x: Tensor, time_B: Tensor) -> Tensor:
    """E[z - x | x_t] of the mixture, in closed form."""
    t = time_B[:, None, None]
    var = ((1 - t) * SPREAD) ** 2 + t**2
    apart = x[:, None] - (1 - t) * MODES  # (B, modes, 2)
    share = (WEIGHTS.log() - (apart**2).sum(-1) / (2 * var[..., 0])).softmax(-1)[..., None]
    clean = MODES + (1 - t) * SPREAD**2 / var * apart
    noise = t / var * apart
    return (share * (noise - clean)).sum(1)


@pytest.mark.parametrize(("sampler", "steps"), [(Euler, 200), (Heun, 50)])
def test_the_exact_flow_gives_the_exact_mixture(sampler, steps) -> None:
    noise = torch.randn(20_000, 2)
    walk = sampler(sampler.Config(steps=steps))
    asked = []
    x = walk.run(objective("rectified_flow"), exact_flow, noise, lambda: noise, lambda: asked.append(1))
    assert (mode_weights(x) - WEIGHTS).abs().max() < 0.015
    assert len(asked) == walk.evaluations == (steps if sampler is Euler else 2 * steps - 1)


def exact_noise(ddpm: DDPM, channels: int = 1):
    """E[z | x_t] for data N(MEAN, STD^2), in closed form."""

    def predict(x: Tensor, time_B: Tensor) -> Tensor:
        kept = ddpm.kept[time_B].float().view(-1, *[1] * (x.dim() - 1))
        noise = (1 - kept).sqrt() / (kept * STD**2 + 1 - kept) * (x - kept.sqrt() * MEAN)
        return torch.cat([noise] * channels, 1) if channels > 1 else noise

    return predict


@pytest.mark.parametrize(
    "sampler",
    [Euler(Euler.Config(steps=100)), Heun(Heun.Config(steps=40)), Ancestral(Ancestral.Config(steps=250))],
    ids=["euler", "heun", "ancestral"],
)
def test_ddpm_gives_back_a_normal_distribution(sampler) -> None:
    ddpm, noise = objective("ddpm"), torch.randn(20_000, 1)
    x = sampler.run(ddpm, exact_noise(ddpm), noise, lambda: torch.randn_like(noise))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, rel=0.04)


def test_heun_is_of_second_order() -> None:
    flow, noise = objective("rectified_flow"), torch.randn(512, 2)

    def walk(sampler, steps: int) -> Tensor:
        return sampler(sampler.Config(steps=steps)).run(flow, exact_flow, noise, lambda: noise)

    exact = walk(Heun, 500)
    errors = {sampler: (walk(sampler, 40) - exact).abs().median() for sampler in (Euler, Heun)}
    assert errors[Heun] < 0.5 * errors[Euler]


def test_times_of_training() -> None:
    uniform = torch.linspace(0.005, 0.995, 100)
    logit = torch.logit(RectifiedFlow(RectifiedFlow.Config()).times(uniform))
    assert logit.mean().item() == pytest.approx(0, abs=1e-4) and logit.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(RectifiedFlow(RectifiedFlow.Config(times="uniform")).times(uniform), uniform)
    ddpm = objective("ddpm", steps=10)
    assert ddpm.times(torch.tensor([0.0, 0.55, 1.0])).tolist() == [0, 5, 9]
    assert [node.time for node in ddpm.path(4)] == [9, 6, 3, 0, 0] and ddpm.path(4)[-1].at == 0


def test_a_learned_variance_has_the_bound_beside_its_noise() -> None:
    """The bound is that of a hand calculation at one value, and moves the variance alone."""
    ddpm, time = objective("ddpm"), torch.tensor([400])
    x, noise = torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), -0.8)
    v = torch.tensor(0.2, requires_grad=True)
    guess = torch.tensor(-0.6, requires_grad=True)

    def predict(noisy: Tensor, time_B: Tensor) -> Tensor:
        return torch.stack([guess.expand(1, 1, 1), v.expand(1, 1, 1)], 1)

    loss = ddpm.losses(predict, x, noise, time).sum()
    loss.backward()
    kept, before, beta = (float(t) for t in (ddpm.kept[400], ddpm.kept[399], ddpm.beta[400]))
    noisy = math.sqrt(kept) * 0.3 + math.sqrt(1 - kept) * -0.8
    clean = (noisy - math.sqrt(1 - kept) * -0.6) / math.sqrt(kept)
    weight = math.sqrt(before) * beta / (1 - kept)
    true_var = beta * (1 - before) / (1 - kept)
    log_var = 0.6 * math.log(beta) + 0.4 * math.log(true_var)
    gap = (weight * (0.3 - clean)) ** 2
    bound = 0.5 * (log_var - math.log(true_var) - 1 + (true_var + gap) / math.exp(log_var))
    assert loss.item() == pytest.approx(0.04 + bound / math.log(2), rel=1e-4)
    assert guess.grad.item() == pytest.approx(2 * (-0.6 + 0.8), rel=1e-4), "the bound does not move the noise"
    assert v.grad.item() != 0
    at_zero = ddpm.losses(predict, x, noise, torch.tensor([0]))
    assert torch.isfinite(at_zero).all() and at_zero.item() > 0.04


def test_a_flow_has_no_ancestral_chain() -> None:
    with pytest.raises(ZooError, match=r"is DDPM's own; set task.sampler"):
        Ancestral(Ancestral.Config()).run(objective("rectified_flow"), exact_flow, torch.randn(2, 2), lambda: None)
