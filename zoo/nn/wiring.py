"""Wirings: how the mixer, the feed-forward and the residual stream of a layer hang together.

A wiring is a layer: ``wiring(x_BLD, span, carry) -> (x_BQD, carry)``, for the positions that the span asks for. What
travels up the stack beside the states, the state of routers above all, is in the `Carry`.

Shapes: B batch, L positions, Q positions asked for, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zoo import config as zc
from zoo.config import at_least
from zoo.moe.layer import MoE
from zoo.moe.types import RouteContext, RouterOutput
from zoo.nn.build import Site
from zoo.nn.feed_forward import Mixture
from zoo.nn.span import Span, asked
from zoo.spec import ZooError


class Carry(NamedTuple):
    """``state`` of the routers so far; ``seen`` by the last feed-forward; the ``routing`` of the MoE layers so far; and
    ``losses`` of routers that are no MoE layer's."""

    state: Any = None
    seen: Tensor | None = None
    routing: tuple[RouterOutput, ...] = ()
    losses: tuple[Tensor, ...] = ()

    def after(self, out: RouterOutput | None) -> Carry:
        """The carry beyond a part that may have routed."""
        return self if out is None else self._replace(state=out.state, routing=(*self.routing, out))


class Wiring(nn.Module):
    """The base of all: a mixer and a feed-forward, ``tail`` whether it can answer for the last positions alone."""

    tail = True

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.mixer = site.mixer()
        self.feed_forward = site.feed_forward()

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        raise TypeError(f"{type(self).__name__} must override forward")


class Sequential(Wiring):
    """The mixer, then the feed-forward, each on a residual path. f is either, n a norm of its own:

    ========  =======================  =====================================================
    pre       x + f(n(x))              nearly all
    post      n(alpha x + f(x))        the first transformer; DeepNorm's alpha, MiniMax-01
    output    x + n(f(x))              OLMo 2, FlexOlmo
    sandwich  x + n'(f(n(x)))          Gemma 2, openPangu
    ========  =======================  =====================================================
    """

    @dataclass
    class Config:
        norm: Literal["pre", "post", "output", "sandwich"] = "pre"
        alpha: float = 1.0

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.mixer_norm, self.feed_forward_norm = site.norm(), site.norm()
        both = config.norm == "sandwich"
        self.mixer_out_norm, self.feed_forward_out_norm = (site.norm(), site.norm()) if both else (None, None)

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        y, out = self.mixer(self._into(x, self.mixer_norm), span, ctx, carry.state)
        carry = carry.after(out)
        x, ctx = asked(x, ctx, span)
        x = self._join(x, y, self.mixer_norm, self.mixer_out_norm)
        y, carry = self._feed_forward(self._into(x, self.feed_forward_norm), ctx, carry)
        return self._join(x, y, self.feed_forward_norm, self.feed_forward_out_norm), carry

    def _feed_forward(self, x: Tensor, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        y, out = self.feed_forward(x, ctx, carry.state)
        return y, carry.after(out)

    def _into(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.config.norm in ("pre", "sandwich") else x

    def _join(self, x: Tensor, y: Tensor, norm: nn.Module, out_norm: nn.Module | None) -> Tensor:
        if self.config.norm == "post":
            return norm(self.config.alpha * x + y)
        if self.config.norm == "output":
            return x + norm(y)
        return x + (y if out_norm is None else out_norm(y))


class PreGated(Sequential):
    """The router looks at what the feed-forward one layer below saw, so that its experts can be fetched meanwhile
    (Pre-gated MoE, arXiv:2308.12066); the first layer's looks at its own input."""

    tail = False

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        if not isinstance(self.feed_forward, MoE):
            raise ZooError("wiring pre_gated wants feed_forward.name=moe: there is no router to move")

    def _feed_forward(self, x: Tensor, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        moe, ctx = self.feed_forward, ctx.at(self.feed_forward.layer)
        out = moe.route(x if carry.seen is None else carry.seen, ctx, carry.state)
        return moe.apply_experts(x, out, ctx.valid), carry.after(out)._replace(seen=x)


class Parallel(Wiring):
    """``x + mixer(n(x)) + feed_forward(n(x))``, one norm for both (GPT-J; BAM, arXiv:2408.08274) or, with
    ``two_norms``, one each."""

    @dataclass
    class Config:
        two_norms: bool = False

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.norm = site.norm()
        self.feed_forward_norm = site.norm() if config.two_norms else None

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        normed = self.norm(x)
        y, out = self.mixer(normed, span, ctx, carry.state)
        carry = carry.after(out)
        normed, _ = asked(normed, ctx, span)
        x, ctx = asked(x, ctx, span)
        z, out = self.feed_forward(
            normed if self.feed_forward_norm is None else self.feed_forward_norm(x), ctx, carry.state
        )
        return x + y + z, carry.after(out)


class Shortcut(Wiring):
    """Two mixers and two dense MLPs in a row, and a feed-forward that leaves after the first mixer and comes back at
    the end, so that its experts' messages travel while the rest computes (ScMoE, arXiv:2404.05019, as in LongCat-Flash,
    arXiv:2509.01322)::

        h1 = x + A0(n x);  m = MoE(n h1);  h2 = h1 + F0(n h1);  h3 = h2 + A1(n h2);  out = h3 + F1(n h3) + m
    """

    @dataclass
    class Config:
        dense: Any = zc.part("feed_forward", "dense")

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.mixer_norm, self.feed_forward_norm = site.norm(), site.norm()
        self.dense = zc.build("feed_forward", config.dense, site)
        self.second_mixer, self.second_dense = site.mixer(), zc.build("feed_forward", config.dense, site)
        self.second_mixer_norm, self.second_dense_norm = site.norm(), site.norm()

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        whole = span.tail(0) if span.first else span
        y, out = self.mixer(self.mixer_norm(x), whole, ctx, carry.state)
        carry, x = carry.after(out), x + y
        normed = self.feed_forward_norm(x)
        m, out = self.feed_forward(*asked(normed, ctx, span), carry.state)
        carry, x = carry.after(out), x + self.dense(normed, ctx)[0]
        y, out = self.second_mixer(self.second_mixer_norm(x), span, ctx, carry.state)
        carry, (x, ctx) = carry.after(out), asked(x, ctx, span)
        x = x + y
        return x + self.second_dense(self.second_dense_norm(x), ctx)[0] + m, carry


class Iterate(Wiring):
    """The mixture runs ``times`` times in a row on its own output, with a router for each time and one bank of experts
    (Chain-of-Experts, arXiv:2506.18945)::

        normed    h = n(x);  h <- h + MoE_c(h), c = 1 ... C;  out = h          as published: the residual x is left out
        outer     the same, but out = x + h
        pre_norm  h = x;     h <- h + MoE_c(n_c(h));          out = h          the standard residual path
    """

    @dataclass
    class Config:
        times: int = 2
        residual: Literal["normed", "outer", "pre_norm"] = "normed"

        def __post_init__(self) -> None:
            at_least(1, self, "times")

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        if not isinstance(self.feed_forward, Mixture):
            raise ZooError("wiring iterate wants feed_forward.name=moe: a dense layer has no experts to choose again")
        self.mixer_norm, self.feed_forward_norm = site.norm(), site.norm()
        again = range(config.times - 1)
        same = replace(site, lent=self.feed_forward.bank)
        self.again = nn.ModuleList(Mixture(Mixture.Config(), same) for _ in again)
        self.again_norm = nn.ModuleList(site.norm() for _ in (again if config.residual == "pre_norm" else range(0)))

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        y, out = self.mixer(self.mixer_norm(x), span, ctx, carry.state)
        carry, (x, ctx) = carry.after(out), asked(x, ctx, span)
        x = x + y
        pre_norm = self.config.residual == "pre_norm"
        h = x if pre_norm else self.feed_forward_norm(x)
        for time in range(self.config.times):
            moe = self.again[time - 1] if time else self.feed_forward
            norm = self.again_norm[time - 1] if time and pre_norm else self.feed_forward_norm
            y, out = moe(norm(h) if pre_norm else h, ctx, carry.state)
            carry, h = carry.after(out), h + y
        return (x + h if self.config.residual == "outer" else h), carry


class MixtureOfDepths(nn.Module):
    """Each sequence sends its best ``share`` of the positions through the layer; the others pass by unchanged
    (arXiv:2404.02258)::

        x + w (layer(x) - x),  w = sigmoid(r . x)

    A finished model chooses causally, by an auxiliary router trained beside it (its section 3.5). Without a cache.
    """

    tail = False

    @dataclass
    class Config:
        share: float = 0.5
        coef: float = 0.01
        inside: Any = zc.part("wiring", "sequential")

        def __post_init__(self) -> None:
            if not 0 < self.share <= 1:
                raise ZooError(f"mixture_of_depths share={self.share} must lie above 0 and be at most 1")

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        choice = {"name": "expert_choice", "k": config.share, "scope": "sequence", "coef": config.coef}
        router = {"name": "composed", "activation": "sigmoid", "selector": {**choice, "inference": "causal"}}
        self.unit = zc.build("unit", {"name": "token"}, site.hidden_size)
        self.router = zc.build("router", router, site.hidden_size, 1)
        self.inside = zc.build("wiring", config.inside, site)

    def reset_parameters(self, std: float) -> None:
        self.router.reset_parameters(std)

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        no_cache("mixture_of_depths", span)
        seen_TD, valid_T, flat = self.unit.see(x, ctx)
        out = self.router(seen_TD, valid_T, flat)
        chosen_BL = (out.used_TK.any(-1)).view(x.shape[:2])
        weight_BL1 = out.weight_TK.sum(-1).view(*x.shape[:2], 1).to(x.dtype)
        # The chosen ones come first, in their order; rows with fewer of them are padded.
        order_BL = torch.argsort((~chosen_BL).to(torch.int8), dim=1, stable=True)
        width = int(chosen_BL.sum(1).max()) if chosen_BL.numel() else 0
        place_BC, length = order_BL[:, :width], x.shape[1]
        place_BCD = place_BC[..., None].expand(-1, -1, x.shape[-1])
        some = {
            f.name: value.gather(1, place_BC)
            for f in fields(ctx)
            if isinstance(value := getattr(ctx, f.name), Tensor) and value.dim() == 2 and value.shape[1] == length
        }
        some["valid"] = chosen_BL.gather(1, place_BC)
        small = Span(
            span.position_BL.expand(len(x), -1).gather(1, place_BC),
            width,
            causal=span.causal,
            valid_BS=some["valid"],
            document_BS=None if span.document_BS is None else span.document_BS.gather(1, place_BC),
        )
        before = x.gather(1, place_BCD)
        y, inner = self.inside(before, small, replace(ctx, **some), Carry())
        step = (y - before) * weight_BL1.gather(1, place_BC[..., None]) * some["valid"][..., None]
        losses = carry.losses if out.loss is None else (*carry.losses, out.loss)
        carry = carry._replace(routing=carry.routing + inner.routing, losses=losses + inner.losses)
        return x.scatter_add(1, place_BCD, step.to(x.dtype)), carry

    def inactive_parameters(self) -> int:
        """Of the layer inside, what the average token passes by, beyond what its own mixtures leave out."""
        modules = [m for m in self.inside.modules() if isinstance(m, MoE)]
        passed = sum(p.numel() for p in self.inside.parameters()) - sum(m.inactive_parameters() for m in modules)
        return round(passed * (1 - self.router.mean_slots))


class MixtureOfBlocks(nn.Module):
    """``sum_k w_k layer_k(x)``: a router sends each sequence through some of ``count`` whole layers (Dense2MoE's
    Mixture of Blocks, S048; MEGADance's genre experts, S044, with ``router.selector=label``). A layer that nobody chose
    does not run. With a cache only where a tag chooses, which must then stay the same; the mean of a sequence, which
    other routers see, changes as it grows."""

    tail = False

    @dataclass
    class Config:
        count: int = 2
        router: Any = zc.part("router", "topk", k=1)
        inside: Any = zc.part("wiring", "sequential")

        def __post_init__(self) -> None:
            at_least(1, self, "count")

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.unit = zc.build("unit", {"name": "sequence"}, site.hidden_size)
        self.router = zc.build("router", config.router, self.unit.width, config.count)
        self.blocks = nn.ModuleList(zc.build("wiring", config.inside, site) for _ in range(config.count))

    @property
    def by_tag(self) -> bool:
        """Whether a tag alone chooses the layers, whatever the sequence holds."""
        return bool(getattr(self.router.selector, "by_tag", False))

    def reset_parameters(self, std: float) -> None:
        self.router.reset_parameters(std)

    def forward(self, x: Tensor, span: Span, ctx: RouteContext, carry: Carry) -> tuple[Tensor, Carry]:
        if not self.by_tag:
            no_cache("mixture_of_blocks", span)
        if not x.shape[1]:
            return x, carry
        seen_TD, valid_T, units = self.unit.see(x, ctx)
        out = self.router(seen_TD, valid_T, units)
        weight_BE = torch.zeros_like(out.scores_TE).scatter_add(1, out.index_TK, out.weight_TK)
        used_BE = torch.zeros_like(weight_BE).scatter_add(1, out.index_TK, out.used_TK.to(weight_BE.dtype)) > 0
        if x.is_meta:  # nobody knows who goes where: all in turn, as many as there are slots
            turn_BE = torch.arange(len(x), device="cpu")[:, None] + torch.arange(len(self.blocks), device="cpu")
            used_BE = turn_BE % len(self.blocks) < self.router.slots
        y, routing = torch.zeros_like(x), carry.routing
        for e, block in enumerate(self.blocks):
            rows = used_BE[:, e].nonzero()[:, 0].to(x.device)
            some = {
                f.name: value[rows]
                for f in fields(ctx)
                if isinstance(value := getattr(ctx, f.name), Tensor) and value.dim() and len(value) == len(x)
            }
            inside = replace(
                span,
                position_BL=span.position_BL.expand(len(x), -1)[rows],
                valid_BS=None if span.valid_BS is None else span.valid_BS[rows],
                document_BS=None if span.document_BS is None else span.document_BS[rows],
                masks={},
            )
            if not len(rows) and not self.training:
                continue
            part, inner = block(x[rows], inside, replace(ctx, **some), Carry())
            y = y.index_add(0, rows, part * weight_BE[rows, e, None, None].to(x.dtype))
            routing = routing + inner.routing
        losses = carry.losses if out.loss is None else (*carry.losses, out.loss)
        # Padding rows have no block: they stay as they are.
        y = torch.where(used_BE.any(1)[:, None, None].to(x.device), y, x)
        return y, carry._replace(routing=routing, losses=losses)

    def inactive_parameters(self) -> int:
        """Of the layers, what those that a sequence does not choose would pass."""
        each = []
        for block in self.blocks:
            modules = [m for m in block.modules() if isinstance(m, MoE)]
            each.append(sum(p.numel() for p in block.parameters()) - sum(m.inactive_parameters() for m in modules))
        return round(sum(each) * (1 - self.router.mean_slots / len(self.blocks)))


def no_cache(name: str, span: Span) -> None:
    """Raises `ZooError` for a wiring whose choices a cache cannot follow."""
    if span.cache is not None:
        raise ZooError(f"wiring {name} has no cache: decode without one (cache=false)")
