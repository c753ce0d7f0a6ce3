"""A claim file, ``configs/<plugin>/claims/<system>.yaml``: what is claimed, who stands against whom, what is expected.

claim: Prices from the linear programme balance the load from the first step.
paper: "arXiv:2502.15451"
recipe: language/mixtral_tiny              # all contestants start from it
set: [train.log_every=1]                   # and share these settings
contestants:                               # the system first: the controls are made from it
  bip: [model.stack.moe.balance.bip.k=2]   # its own settings, or {recipe: ..., set: [...], of: ..., control: ...}
  switch: []
controls: [dense, dense_wide, random_router]
share: [tokeniser]                         # first stages that train the same part in all: run once a seed, for all
metrics:
  loss: {eval: metrics.loss}                                 # from the document of `zoo eval --json`
  max_vio: {log: "moe/layer*/max_vio", steps: [1, 24]}       # from the log of the training
  domain: {trace: domain.nmi}                                # from the metrics of `zoo trace`
expect:
  - max_vio: bip < switch                  # also: a < b < c, a < 0.3, a < 1.005 * b (a margin), a < 0.5 * b + 0.5 * c
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo import config as zc
from zoo import registry, resources
from zoo.claims.verdict import Statement, parse
from zoo.spec import ZooError
from zoo.train.recipe import read_recipe, resolve_recipe


@dataclass
class Metric:
    """One number of a run: the mean over what the path leads to.

    ``eval`` and ``trace`` are dotted paths in the documents of ``zoo eval --json`` and ``zoo trace --json``; of a list
    with a value for each MoE layer, ``layers`` takes some (from 0). Where that value is a list over experts, those from
    the first to the last of ``experts`` are added up. ``log`` is a wildcard on the columns of the training log;
    ``steps`` are the first and last optimiser step, counted from 1. With ``above`` it is no mean but the first step at
    which the log reaches that value, and one more than the last of the log where it never does. ``times`` multiplies.
    """

    eval: str | None = None
    trace: str | None = None
    log: str | None = None
    layers: list[int] | None = None
    experts: list[int] | None = None
    steps: list[int] | None = None
    above: float | None = None
    times: float = 1.0

    def __post_init__(self) -> None:
        if self.above is not None and self.log is None:
            raise ZooError(f"above={self.above} of a metric needs a log, in which to look for the step")
        if sum(source is not None for source in (self.eval, self.trace, self.log)) != 1:
            raise ZooError("a metric of a claim comes from one of eval, trace and log; set exactly one of them")
        for name in ("experts", "steps"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or value[0] > value[1]):
                raise ZooError(f"{name}={value} of a metric must be [first, last]")


@dataclass
class Contestant:
    """``set`` are settings on top of the claim's recipe, or of another ``recipe``. ``of`` names a contestant whose
    trained weights it evaluates under its own settings, without training. ``control`` is one of the standard controls,
    made from the first contestant and then ``set``."""

    recipe: str | None = None
    set: list[str] = field(default_factory=list)
    of: str | None = None
    control: Literal["dense", "dense_wide", "random_router"] | None = None


@dataclass
class Claim:
    """The schema of a claim file. ``flops: free`` needs a ``reason``; ``limit`` evaluates that many items of the
    split, spread over it, instead of all. ``share`` names first stages of the recipe: they are trained once a
    seed, with the first contestant's settings, and every contestant begins its other stages with what they trained."""

    claim: str = "???"
    paper: str = ""
    recipe: str = "???"
    set: list[str] = field(default_factory=list)
    contestants: dict[str, Any] = field(default_factory=dict)
    controls: list[str] = field(default_factory=list)
    share: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    expect: list[Any] = field(default_factory=list)
    seeds: int = 5
    flops: Literal["equal", "free"] = "equal"
    reason: str = ""
    split: Literal["test", "val"] = "test"
    limit: int | None = None

    def __post_init__(self) -> None:
        zc.at_least(1, self, "seeds", "limit")
        self.contestants = {name: _contestant(name, node) for name, node in self.contestants.items()}
        for name in self.controls:
            self.contestants[name] = _contestant(name, {"control": name})
        self.metrics = {name: _part(Metric, node, f"metrics.{name}") for name, node in self.metrics.items()}
        for required in ("contestants", "metrics", "expect"):
            if not getattr(self, required):
                raise ZooError(f"a claim needs {required}, and this one has none")
        if (self.flops == "free") != bool(self.reason):
            raise ZooError("flops: free needs a reason, and a reason is given for nothing else; set both or none")

    def statements(self) -> list[Statement]:
        """What is expected, pair by pair."""
        found = []
        for item in self.expect:
            pairs = item.items() if isinstance(item, dict) else [(next(iter(self.metrics)), item)]
            for metric, text in pairs:
                if metric not in self.metrics:
                    raise ZooError(f"unknown metric '{metric}' in expect; {registry.suggest(metric, self.metrics)}")
                found += parse(metric, str(text), self.contestants)
        return found


def _contestant(name: str, node: Any) -> Contestant:
    if not name.isidentifier():
        raise ZooError(f"contestant '{name}' must be a name of letters, digits and _")
    node = {"set": node} if isinstance(node, list) else node
    return _part(Contestant, {} if node is None else node, f"contestants.{name}")


def _part(schema: Any, node: Any, path: str) -> Any:
    if not isinstance(node, dict):
        raise ZooError(f"config key '{path}' is a section; set its keys, not {node!r}")
    return zc.to_object(schema, zc.resolve(schema, node, path))


# -- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """Where a claim is, and where its committed results and its card are."""

    name: str
    path: Path
    results: Path
    card: Path

    def digest(self) -> str:
        """Changes with what the claim says, not with comments."""
        return digest(zc.read_yaml(self.path))


def claims() -> dict[str, File]:
    """The claims of all installed plugins by ``plugin/system``. A name that starts with ``_`` is no claim."""
    found = {}
    for plugin in registry.list_plugins().values():
        folder = resources.plugin_configs(plugin.name, plugin.package) / "claims"
        for path in sorted(folder.glob("*.yaml")):
            if not path.stem.startswith("_"):
                card = resources.card_path(plugin.name, plugin.package, path.stem)
                name = f"{plugin.name}/{path.stem}"
                found[name] = File(name, path, folder / "results" / f"{path.stem}.json", card)
    return found


def find(name: str) -> File:
    """A claim by ``plugin/system``, or by the path of its YAML; the results of such a one lie beside it."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        return File(path.stem, path, path.parent / "results" / f"{path.stem}.json", path.with_suffix(".md"))
    known = claims()
    if name not in known:
        raise ZooError(f"no claim '{name}'; {registry.suggest(name, known)}")
    return known[name]


def read(file: File) -> Claim:
    """The claim in a file, checked. Raises `ZooError` that names the file."""
    try:
        claim: Claim = _part(Claim, zc.read_yaml(file.path), "claim")
        claim.statements()
        return claim
    except ZooError as error:
        raise ZooError(f"claim '{file.name}': {error}") from error


# -- what the contestants run ----------------------------------------------------------------------------------------


def recipes(claim: Claim) -> dict[str, zc.Tree]:
    """The resolved recipe of every contestant, in order."""
    from zoo.claims.controls import control

    trees: dict[str, zc.Tree] = {}
    first = next(iter(claim.contestants))
    for name, c in claim.contestants.items():
        try:
            if c.of is not None and (c.of not in trees or claim.contestants[c.of].of is not None):
                raise ZooError(f"of={c.of} must name a contestant before this one, which trains")
            if c.control or c.of:
                over = zc.from_dotlist(c.set)
                start = control(c.control, trees[first]) if c.control else trees[str(c.of)]
                trees[name] = resolve_recipe(zc.merge(start, over), name) if c.set else start
            else:
                trees[name] = read_recipe(c.recipe or claim.recipe, [*claim.set, *c.set])
            stages = list(trees[name]["stages"])
            if stages[: len(claim.share)] != claim.share or (stages and len(stages) == len(claim.share)):
                raise ZooError(f"share={claim.share} must be the first of its stages, and not all; it has {stages}")
            for stage in claim.share:
                if trees[name]["stages"][stage] != trees[first]["stages"][stage]:
                    raise ZooError(f"stage '{stage}' is shared and trained as {first} says; leave its settings alone")
        except ZooError as error:
            raise ZooError(f"contestant '{name}': {error}") from error
    return trees


def samples(tree: zc.Tree) -> int:
    """Training samples of a recipe."""
    t = tree["train"]
    return int(t["steps"] * t["batch_size"] * t["accumulate"] * t["devices"] * t["nodes"])


def tokens(tree: zc.Tree) -> int:
    """Training samples times their ``context``, 1 where the data have none."""
    return samples(tree) * int(tree["data"].get("context", 1))


def digest(tree: Any) -> str:
    """Twelve hexadecimal digits that change with the content of plain data."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
