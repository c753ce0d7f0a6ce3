"""The table of all parts of the core, ``docs/moe.md``, from the registry.

python -m zoo.moe.docs > docs/moe.md
"""

from __future__ import annotations

from zoo import registry
from zoo.spec import PartSpec

KINDS = {
    "unit": "What gets one decision: `moe.unit`.",
    "router": "`moe.router`. `composed` takes the parts below; others are shorthands, or routers of their own.",
    "scorer": "From what the router sees to logits: `router.scorer`.",
    "logit_hook": "Any number of them, in order, on the logits: which experts and how much. `router.logit_hooks.NAME`.",
    "activation": "From logits z to scores s: `router.activation`.",
    "select_hook": "Any number of them, in order, on the selection scores: which experts, never how much. "
    "`router.hooks.NAME`. The bias of a balancer comes before them.",
    "selector": "Which experts: `router.selector`.",
    "capacity": "Which assignments fit: `router.capacity`. Without one nothing is dropped.",
    "weigher": "How much, w: `router.weigher`.",
    "experts": "What an expert computes: `moe.experts`.",
    "shared": "What every token passes beside the routed experts: `moe.shared`.",
    "balancer": "What keeps the experts in use, any number of them: `moe.balance.NAME`.",
    "mixer": "How a position of the stack hears of others: `stack.mixer`.",
    "feed_forward": "What a layer of the stack does with each position: `stack.feed_forward`. f, with n a norm.",
    "wiring": "How mixer, feed-forward and residual stream hang together: `stack.wiring`. "
    "`stack.first` and `stack.pattern` give some layers other parts; `stack.pool` makes layers share experts.",
    "init action": "What a stage does to the weights before it begins: `stages.NAME.init`.",
}

INTRO = """# The parts of a mixture of experts

Made by `python -m zoo.moe.docs > docs/moe.md`; a test holds that it is up to date. A layer is composed of these names
in a config, in this order:

    unit -> router -> experts + shared
    router = scorer -> logit hooks -> activation -> select hooks -> selector -> capacity -> weigher

    moe:
      num_experts: 64
      router:
        name: composed
        activation: sigmoid
        hooks: {group_limit: {groups: 8, keep: 4}}
        selector: {name: topk, k: 6}
        weigher: {name: gather, renorm: true, scale: 2.5}

x is the token, z logits, s scores, w weights, E experts, T tokens, k experts a token. Every part's docstring
says more.

## What a part is

A class with a dataclass `Config`, whose fields are its settings, and these calls; CONTRIBUTING.md shows one whole.
Parts with parameters also have `reset_parameters(std)`; those that lack something in `ctx` say so in a `ZooError`.

"""

CALLS = {
    "router": "(config, hidden_size, num_experts); forward(x_TD, valid_T, ctx, state) -> RouterOutput; slots",
    "scorer": "(config, hidden_size, num_experts); forward(x_TD, ctx, state) -> logits_TE, state",
    "logit_hook": "(config, hidden_size, num_experts); forward(values_TE, x_TD, ctx) -> logits_TE",
    "activation": "(config, num_experts); forward(logits_TE, ctx) -> scores_TE",
    "select_hook": "(config, hidden_size, num_experts); forward(values_TE, x_TD, ctx) -> select_TE",
    "selector": "(config, hidden_size, num_experts); forward(x_TD, select_TE, scores_TE, ctx) -> index_TK, used_TK; "
    "slots",
    "capacity": "(config, num_experts); forward(index_TK, used_TK, select_TE, ctx) -> used_TK",
    "weigher": "(config, hidden_size, num_experts); forward(x_TD, logits_TE, scores_TE, index_TK, used_TK, ctx) "
    "-> weight_TK, shared_TS or None",
    "experts": "zoo.moe.experts.Bank; rows(x, plan, valid_NW) -> y; stacked",
    "shared": "zoo.moe.shared.Shared; branch(x, weight) -> y; make(hidden_size)",
    "balancer": "zoo.moe.balance.Balancer; any of bias(layer, scores_TE, valid_T), loss(routing), observe(routing), "
    "step()",
    "unit": "zoo.moe.units.TokenUnit; see(x, ctx) -> seen_TD, valid_T, ctx; split, join, spread",
    "init action": "(config); __call__(model, states)",
}
"""How a part of each kind is made and called: all that a new one has to know."""


def page() -> str:
    """The whole of ``docs/moe.md``. Parts of plugins are left out: what is installed differs."""
    made = {kind: [e.spec for e in registry.entries(kind).values() if not e.plugin.name] for kind in registry.kinds()}
    parts = {kind: [s for s in specs if isinstance(s, PartSpec)] for kind, specs in made.items()}
    known = [*KINDS, *(kind for kind in parts if kind not in KINDS)]
    width = max(map(len, CALLS))
    calls = [f"    {kind:{width}}  {call}\n" for kind, call in CALLS.items()]
    return INTRO + "".join(calls) + "".join(_section(kind, parts[kind]) for kind in known if parts.get(kind))


def _section(kind: str, specs: list[PartSpec]) -> str:
    rows = [f"| `{s.name}` | {_cell(s.doc)} | {_paper(s.paper)} | {_cell(s.systems)} |" for s in specs]
    head = ["| name | formula | paper | used by |", "| --- | --- | --- | --- |"]
    return "\n".join(["", f"## {kind}", "", *([KINDS[kind], ""] if kind in KINDS else []), *head, *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _paper(paper: str) -> str:
    where, _, rest = paper.partition(",")
    number = where.removeprefix("arXiv:")
    if number == where:
        return _cell(paper)
    return f"[{where}](https://arxiv.org/abs/{number}){',' + rest if rest else ''}"


if __name__ == "__main__":
    print(page(), end="")
