"""Routing traces: what is recorded, how it is kept, and every metric against a calculation or a planted answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo import config, create_model
from zoo.moe import MoE, MoEConfig, RouteContext, Routing
from zoo.spec import ZooError
from zoo.trace import METRICS, LayerTrace, RoutingTrace, analyse, open_trace, record, write_report
from zoo.trace.congestion import congestion, equilibrium
from zoo.trace.folder import Column, Recorder
from zoo.trace.locality import cache, simulate, srp
from zoo.trace.metrics import coactivation, divergence, information, load, transition

TINY = "time_series/time_moe_tiny"
STACK = {"num_layers": 3, "hidden_size": 16, "mixer": {"num_heads": 2}}


def traced(
    index: Any, experts: int, length: int | None = None, logits: Any = None, used: Any = None, **fields: Any
) -> RoutingTrace:
    """A trace in memory of layers (L, N, K), cut into sequences of ``length``."""
    index_LNK = np.asarray(index, np.int32)
    tokens = index_LNK.shape[1]
    length = length or tokens
    used_LNK = np.ones(index_LNK.shape, bool) if used is None else np.asarray(used)
    weight_LNK = used_LNK.astype(np.float32)
    layers = tuple(
        LayerTrace(f"layer{n}", experts, 0, *decision, None if logits is None else logits[n])
        for n, decision in enumerate(zip(index_LNK, weight_LNK, used_LNK, strict=True))
    )
    place_N = np.arange(tokens)
    fields = {
        "seq_id": place_N // length,
        "position": place_N % length,
        **{k: np.asarray(v) for k, v in fields.items()},
    }
    return RoutingTrace(layers, (fields,))


# -- recording our own models ------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two MoE layers over given states: the second decides once for three tokens."""

    def __init__(self, **unit: Any) -> None:
        super().__init__()
        first = config.make(MoEConfig, num_experts=4)
        self.layers = nn.ModuleList([MoE(first, 8), MoE(config.make(MoEConfig, num_experts=6, **unit), 8)])
        for layer in self.layers:
            layer.reset_parameters(0.5)

    def forward(self, x: Tensor, valid: Tensor | None = None, domain: Tensor | None = None) -> Routing:
        ctx, routing = RouteContext(valid=valid, domain=domain), []
        for n, layer in enumerate(self.layers):
            y, out = layer(x, ctx.at(n))
            x = x + y
            routing.append(out)
        return tuple(routing)


def test_a_trace_is_what_the_routers_said(tmp_path: Path) -> None:
    model = create_model(TINY, stack=STACK)
    batches = [{"x_BL": torch.randn(4, 11)}, {"x_BL": torch.randn(2, 7)}]
    trace = record(model, batches, lambda m, b: m(**b), tmp_path / "t", info={"name": TINY})
    assert model.training, "left as it was"
    model.eval()
    with torch.no_grad():
        said = [model(**batch).routing for batch in batches]
    for n, layer in enumerate(trace.layers):
        for field, name in (("index_TK", "index_NK"), ("weight_TK", "weight_NK"), ("used_TK", "used_NK")):
            assert np.array_equal(getattr(layer, name), np.concatenate([getattr(r[n], field).numpy() for r in said]))
        assert np.array_equal(layer.logits_NE, np.concatenate([r[n].logits_TE.half().numpy() for r in said]))
        assert np.array_equal(trace.counts()[n], sum(r[n].counts_E() for r in said))
    assert [layer.name for layer in trace.layers] == [f"stack.layers.{n}.feed_forward" for n in range(3)]
    assert trace.streams[0]["seq_id"].tolist() == [s for s, size in enumerate([11] * 4 + [7] * 2) for _ in range(size)]
    assert trace.streams[0]["position"].tolist() == [*range(11)] * 4 + [*range(7)] * 2 and trace.tokens == 58
    assert len(trace.streams) == 1 and trace.info == {"name": TINY}


def test_padding_is_left_out(tmp_path: Path) -> None:
    model, x = Two(), torch.randn(3, 6, 8)
    valid = torch.arange(6) >= torch.tensor([[2], [0], [5]])
    padded = record(model, [{"x": x, "valid": valid}], lambda m, b: m(**b), tmp_path / "padded")
    whole = record(model, [{"x": x}], lambda m, b: m(**b), tmp_path / "whole")
    kept = valid.flatten().numpy()
    assert padded.tokens == 11 and padded.streams[0]["position"].tolist() == [*range(4), *range(6), 0]
    for one, two in zip(padded.layers, whole.layers, strict=True):
        assert np.array_equal(one.index_NK, two.index_NK[kept])
        np.testing.assert_allclose(one.weight_NK, two.weight_NK[kept], rtol=1e-5)


def test_domains_come_from_the_context_or_the_batch(tmp_path: Path) -> None:
    model, x = Two(), torch.randn(2, 3, 8)
    run = lambda m, b: m(b["x"], domain=b.get("given"))  # noqa: E731
    for name, domain, wanted in (
        ("given", torch.tensor([5, 7]), [5, 5, 5, 7, 7, 7]),
        ("domain", torch.tensor([5, 7]), [5, 5, 5, 7, 7, 7]),
        ("domain", torch.arange(6).view(2, 3), [0, 1, 2, 3, 4, 5]),
        ("domain", torch.arange(8).view(2, 4), [0, 1, 2, 4, 5, 6]),  # the last one is a target only
    ):
        trace = record(model, [{"x": x, name: domain}], run, tmp_path / "t")
        assert trace.streams[0]["domain"].tolist() == wanted
    assert (
        "domain"
        not in record(model, [{"x": x, "domain": torch.zeros(2, 9, dtype=torch.long)}], run, tmp_path / "t").streams[0]
    )


def test_layers_that_decide_for_other_units_have_a_stream_of_their_own(tmp_path: Path) -> None:
    model = Two(unit={"name": "segment", "length": 3})
    batches = [{"x": torch.randn(2, 6, 8)}, {"x": torch.randn(3, 6, 8)}]
    trace = record(model, batches, lambda m, b: m(**b), tmp_path / "t")
    assert [len(layer.index_NK) for layer in trace.layers] == [30, 10] and len(trace.streams) == 2
    assert trace.streams[1]["seq_id"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert trace.transition() == [None] and set(analyse(trace)) >= {"load", "srp", "cache"}


def test_a_layer_that_runs_twice_is_two_layers(tmp_path: Path) -> None:
    model = Two()
    trace = record(model, [{"x": torch.randn(2, 3, 8)}] * 2, lambda m, b: (m(**b), m(**b)), tmp_path / "t")
    assert [layer.name for layer in trace.layers] == ["layers.0", "layers.1", "layers.0#2", "layers.1#2"]
    assert all(len(layer.index_NK) == 12 for layer in trace.layers)


def test_expert_choice_has_as_many_slots_as_a_token_needs(tmp_path: Path) -> None:
    model = Two(router={"name": "composed", "selector": {"name": "expert_choice", "k": 2}})
    trace = record(model, [{"x": torch.randn(2, n, 8)} for n in (3, 5)], lambda m, b: m(**b), tmp_path / "t")
    model.eval()
    torch.testing.assert_close(trace.layers[1].counts().sum() / 16, 2.0, atol=0.5, rtol=0)


def test_what_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="Linear has no MoE layer"):
        record(nn.Linear(2, 2), [], lambda m, b: None, tmp_path / "t")
    with pytest.raises(ZooError, match="at least one batch"):
        record(Two(), [], lambda m, b: None, tmp_path / "t")
    with pytest.raises(ZooError, match="no MoE layer ran"):
        record(Two(), [{"x": torch.ones(1, 1, 8)}], lambda m, b: None, tmp_path / "t")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_was_written_and_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "t"
    trace = record(Two(), [{"x": torch.randn(2, 5, 8)}], lambda m, b: m(**b), folder)
    again = open_trace(folder)
    for one, two in zip(trace.layers, again.layers, strict=True):
        assert isinstance(two.index_NK, np.memmap) and isinstance(two.logits_NE, np.memmap)
        assert np.array_equal(one.index_NK, two.index_NK) and np.array_equal(one.weight_NK, two.weight_NK)
    assert all(isinstance(value, np.memmap) for value in again.streams[0].values())
    assert list(folder.parent.iterdir()) == [folder]
    np.save(folder / "stream0.seq_id.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ZooError, match=r"cannot be read as a trace: .*objects"):
        open_trace(folder)
    np.save(folder / "stream0.seq_id.npy", np.arange(3))
    with pytest.raises(ZooError, match="differ in length"):
        open_trace(folder)
    (folder / "trace.json").write_text('{"format": 9}')
    with pytest.raises(ZooError, match="format 9, this zoo reads 1"):
        open_trace(folder)


def test_a_trace_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    write = lambda: record(Two(), [{"x": torch.randn(1, 2, 8)}], lambda m, b: m(**b), tmp_path / "t")  # noqa: E731
    write()
    write()
    (tmp_path / "t" / "thesis.tex").write_text("years of work")
    with pytest.raises(ZooError, match=r"holds something else than a trace \(thesis.tex\)"):
        write()
    assert (tmp_path / "t" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").touch()
    with pytest.raises(ZooError, match="is a file"):
        Recorder(tmp_path / "file")


def test_an_error_leaves_the_old_trace_alone(tmp_path: Path) -> None:
    model, old = Two(), {"x": torch.randn(1, 4, 8)}
    record(model, [old], lambda m, b: m(**b), tmp_path / "t")

    def batches() -> Any:
        yield {"x": torch.randn(1, 2, 8)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, batches(), lambda m, b: m(**b), tmp_path / "t")
    assert open_trace(tmp_path / "t").tokens == 4 and list(tmp_path.iterdir()) == [tmp_path / "t"]


def test_a_column_grows_in_rows_and_in_width(tmp_path: Path) -> None:
    column = Column(tmp_path / "c.npy", np.int32, (2,))
    for rows in ([[1, 2]], [[3, 4, 5]], [[6]]):
        column.append(np.array(rows))
    column.close()
    assert np.load(tmp_path / "c.npy").tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]


def test_split_is_by_sequence() -> None:
    trace = traced(np.random.default_rng(0).integers(0, 4, (1, 40, 2)), 4, length=4)
    one, two = trace.split(0.3)
    assert (one.tokens, two.tokens) == (12, 28)
    assert not set(one.streams[0]["seq_id"]) & set(two.streams[0]["seq_id"])
    assert np.array_equal(one.counts()[0] + two.counts()[0], trace.counts()[0])
    with pytest.raises(ZooError, match="one sequence cannot be split"):
        traced(np.zeros((1, 4, 1)), 2).split(0.5)


# -- load, groups, pairs -----------------------------------------------------------------------------------------------


def test_counts_and_pairs_by_hand() -> None:
    used = [[[True, True], [True, False], [True, True], [True, True]]] * 2
    trace = traced(
        [[[0, 1], [2, 0], [0, 1], [1, 2]], [[0, 1], [1, 0], [2, 0], [0, 2]]], 4, used=used, domain=[0, 0, 1, -1]
    )
    assert trace.counts()[0].tolist() == [2, 3, 2, 0]
    assert trace.counts("domain")[0].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert trace.coactivation()[0].tolist() == [[2, 2, 0, 0], [2, 3, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    following = trace.transition()[0]
    assert following is not None and following.tolist() == [[2, 1, 1, 0], [3, 1, 2, 0], [1, 1, 1, 0], [0] * 4]
    row = load(trace)
    assert row["dead"] == [1, 1] and row["max_vio"][0] == pytest.approx(3 * 4 / 7 - 1) and row["slots"] == [1.75, 1.75]
    assert row["share"][0] == pytest.approx([2 / 7, 3 / 7, 2 / 7, 0])
    with pytest.raises(ZooError, match="has no 'label'; it has: seq_id, position, domain"):
        trace.counts("label")


@pytest.mark.parametrize("split", [1, 4])
def test_information_is_one_for_routing_by_label_and_none_without(split: int) -> None:
    """Each label has ``split`` experts of its own, or all tokens choose by lot."""
    random = np.random.default_rng(0)
    label = random.integers(0, 4, 20000)
    own = label * split + random.integers(0, split, len(label))
    lot = random.integers(0, 4 * split, len(label))
    nmi = information(traced([own[:, None], lot[:, None]], 4 * split, label=label), "label")["nmi"]
    assert nmi[0] == pytest.approx(1) and 0 <= nmi[1] < 0.002


def test_information_by_hand_and_where_there_is_none() -> None:
    index = [[[0], [0], [0], [1], [1], [1]]]
    assert information(traced(index, 2, domain=[0, 0, 1, 1, 1, 0]), "domain")["nmi"][0] == pytest.approx(
        1 + (2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3))
    )
    assert information(traced(index, 2, domain=[0] * 6))["nmi"] == [None], "nothing to know"


def test_divergence_of_languages() -> None:
    index = [[[0], [1], [0], [1], [2], [3], [0], [2]]]
    js = divergence(traced(index, 4, domain=[0, 0, 1, 1, 2, 2, 3, 3]))["js"][0]
    assert js[:3] == pytest.approx([0, 0, 1], abs=1e-12) and js[3] == pytest.approx(0.5)


def test_pairs_that_go_together() -> None:
    random = np.random.default_rng(1)
    first = random.integers(0, 8, 4000)
    partner = np.where(first < 2, 1 - first, (first + random.integers(1, 6, 4000) - 2) % 6 + 2)
    trace = traced([np.stack([first, partner], 1), np.stack([first, first], 1)], 8)
    assert coactivation(trace)["pairs"][0][0] == [0, 1, pytest.approx(1)]
    step = transition(traced([first[:, None], (first[:, None] + 3) % 8], 8))
    assert step["predictability"] == [1.0] and step["popularity"][0] == pytest.approx(1 / 8, abs=0.02)
    assert {tuple(pair[:2]) for pair in step["pairs"][0]} <= {(e, (e + 3) % 8) for e in range(8)}


# -- locality ----------------------------------------------------------------------------------------------------------


def test_srp_by_hand() -> None:
    """One window of 4: expert 0 four times, 1 three times, 2 once. Foretelling {0, 1}: 7 of 8 right both ways."""
    trace = traced([[[0, 1], [0, 1], [0, 1], [0, 2]]], 4)
    assert srp(trace, (4, 1, 5)) == {"srp4": [pytest.approx(7 / 8)], "srp1": [1.0], "srp5": [None]}


def binomial_srp(m: int, p: float) -> float:
    from math import comb

    mass = np.array([comb(m, c) * p**c * (1 - p) ** (m - c) for c in range(m + 1)])
    uses, count = mass * np.arange(m + 1), np.arange(m + 1)
    return max(2 * uses[count >= c].sum() / (m * mass[count >= c].sum() + m * p) for c in range(1, m + 1))


def local_routing(random: Any, sequences: int = 40, length: int = 64, experts: int = 8) -> np.ndarray[Any, Any]:
    """Each sequence has its own favourites, which drift."""
    taste = random.normal(size=(sequences, 1, experts)) + 0.3 * random.normal(size=(sequences, length, experts)).cumsum(
        1
    )
    order = (taste + random.gumbel(size=taste.shape)).argsort(-1)[..., -2:]
    return order.reshape(1, -1, 2)  # type: ignore[no-any-return]


def test_srp_of_random_routing_is_that_of_the_binomial() -> None:
    lots = np.random.default_rng(0).random((1, 64 * 400, 8)).argsort(-1)[..., :2]
    for m in (4, 16):
        assert srp(traced(lots, 8, length=64), (m,))[f"srp{m}"][0] == pytest.approx(binomial_srp(m, 2 / 8), abs=0.01)


def test_shuffling_tokens_lowers_srp_and_the_caches() -> None:
    random = np.random.default_rng(0)
    index = local_routing(random)
    shuffled = index[:, random.permutation(index.shape[1])]
    near, far = (traced(i, 8, length=64) for i in (index, shuffled))
    for name in ("srp4", "srp16", "srp64"):
        assert srp(far)[name][0] < srp(near)[name][0] - 0.05
    for name in ("lru", "sch", "belady"):
        assert cache(far)[name][0] < cache(near)[name][0] - 0.05


@st.composite
def uses(draw: Any) -> tuple[np.ndarray[Any, Any], int]:
    """(S, T, E) of which experts tokens use, at most K each, and a cache with room for K at least."""
    experts, length = draw(st.integers(2, 7)), draw(st.integers(1, 24))
    most = draw(st.integers(1, min(3, experts)))
    sets = st.sets(st.integers(0, experts - 1), max_size=most)
    used = np.zeros((1, length, experts), bool)
    for t, chosen in enumerate(draw(st.lists(sets, min_size=length, max_size=length))):
        used[0, t, list(chosen)] = True
    return used, draw(st.integers(most, experts))


@settings(max_examples=150, deadline=None)
@given(uses(), st.integers(1, 12))
def test_lru_sch_belady(case: tuple[np.ndarray[Any, Any], int], ahead: int) -> None:
    used, size = case
    lru, sch, belady = (int(simulate(used, size, a)[0]) for a in (0, ahead, used.shape[1]))
    assert 0 <= lru <= sch <= belady <= used.sum()


def test_lru_sch_belady_on_every_small_trace() -> None:
    """All 4^7 sequences of one expert of four, cache of three; Belady also against trying everything."""
    lines = np.array(list(product(range(4), repeat=7)))
    used = np.eye(4, dtype=bool)[lines]
    for size in (2, 3):
        hits = [simulate(used, size, ahead) for ahead in (0, 1, 2, 4, 7)]
        assert all((hits[0] <= h).all() and (h <= hits[-1]).all() for h in hits) and (hits[2] > hits[0]).any()
        for n in range(0, len(lines), 997):
            assert hits[-1][n] == best_possible(lines[n], size)


def best_possible(line: Sequence[int], size: int) -> int:
    states = {frozenset[int](): 0}
    for e in line:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            full = held | {e}
            choices = [full] if len(full) <= size else [full - {out} for out in full - {e}]
            for choice in choices:
                after[choice] = max(after.get(choice, 0), hits + (e in held))
        states = after
    return max(states.values())


def test_lru_by_hand_and_a_cache_too_small() -> None:
    trace = traced([[[0], [1], [0], [2], [1], [0]]], 3)
    rates = cache(trace, size=2, ahead=2)
    assert rates == {
        "size": [2],
        "lru": [pytest.approx(1 / 6)],
        "sch": [pytest.approx(2 / 6)],
        "belady": [pytest.approx(2 / 6)],
    }
    assert cache(traced([[[0], [1], [0], [2], [1], [0]]], 3, length=3), size=2)["lru"] == [pytest.approx(1 / 6)]
    with pytest.raises(ZooError, match="a token uses 2 experts of layer0, more than a cache of 1 holds; raise size"):
        cache(traced([[[0, 1]]], 3), size=1)


# -- congestion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 3.0, 14.0, 36.0])
def test_equilibrium_solves_its_equation(gamma: float) -> None:
    quality = np.random.default_rng(0).normal(size=(3, 16)) * 3
    share = equilibrium(quality, np.full(3, gamma))
    power = np.exp(quality - gamma * share)
    np.testing.assert_allclose(share, power / power.sum(1, keepdims=True), atol=1e-10)


@pytest.mark.parametrize("quality", ["mean", "selected"])
@pytest.mark.parametrize("gamma", [0.0, 5.0, 30.0])
def test_a_planted_gamma_is_recovered(gamma: float, quality: Any) -> None:
    random = np.random.default_rng(3)
    tokens, experts = 64 * 96, 16
    q = random.normal(size=experts)
    share = equilibrium(q[None], np.array([gamma]))[0]
    index = random.choice(experts, size=(1, tokens, 1), p=share)
    logits = (q + random.normal(size=(1, tokens, experts))).astype(np.float16)
    trace = traced(index, experts, length=64, logits=logits)
    found = congestion(trace, quality)
    assert found["low"][0] <= gamma <= found["high"][0] and found["high"][0] < gamma + max(1.0, gamma)
    if gamma:
        assert found["low"][0] > 0 and found["l1"][0] < found["l1_softmax"][0]


def test_congestion_needs_logits() -> None:
    with pytest.raises(ZooError, match="needs the router's logits"):
        congestion(traced(np.zeros((1, 8, 1)), 2, length=4))
    with pytest.raises(ZooError, match="quality='norm' must be one of mean, selected"):
        congestion(traced(np.zeros((1, 8, 1)), 2, length=4), "norm")  # type: ignore[arg-type]


# -- reports and the command line --------------------------------------------------------------------------------------


def test_a_report_says_all_it_can(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 2560, 8)).astype(np.float16)
    index = np.concatenate([local_routing(random), local_routing(random)])
    trace = traced(index, 8, length=64, logits=logits, domain=random.integers(0, 3, 2560))
    report = analyse(trace)
    assert set(report) == {"load", "domain", "divergence", "coactivation", "transition", "srp", "cache", "congestion"}
    files = write_report(trace, report, tmp_path)
    assert {f.name for f in files} == {
        "metrics.json",
        "load.png",
        "groups.png",
        "coactivation.png",
        "transition.png",
        "locality.png",
    }
    assert all(f.read_bytes()[:4] == b"\x89PNG" for f in files[1:])
    document = json.loads(files[0].read_text())
    assert document["tokens"] == 2560 and document["metrics"]["load"] == report["load"]
    assert set(analyse(traced(index, 8))) == {"load", "coactivation", "transition", "srp", "cache"}


def test_zoo_trace(zoo: Callable[..., Any], tmp_path: Path) -> None:
    data = ("data=statsmodels", "data.series=sunspots", "data.context=32", "data.horizon=8")
    code, out, err = zoo("trace", f"{TINY}.etth1", *data, "limit=6", "batch_size=4", "--out", "o")
    assert code == 0, err
    assert (
        "max violation" in out and "SRP 16" in out and "wrote o/routing" in out and (tmp_path / "o/load.png").is_file()
    )
    trace = open_trace(tmp_path / "o/routing")
    assert trace.info["data"]["name"] == "time_series/statsmodels" and trace.info["split"] == "test"
    assert len(np.unique(trace.streams[0]["seq_id"])) == 6 and trace.tokens == 6 * 39
    code, out, _ = zoo("trace", f"{TINY}.etth1", *data, "limit=2", "logits=false", "--json", "--out", "o")
    assert code == 0 and "congestion" not in json.loads(out)
    for line, message in {
        ("nope/x",): "unknown model 'nope/x'",
        ("time_series/naive",): "'time_series/naive' brings no data of its own",
        (f"{TINY}.etth1", "logit=1"): "unknown setting 'logit' of zoo trace; did you mean logits",
        (f"{TINY}.etth1", *data, "limit=0"): "limit=0 must be at least 1",
    }.items():
        code, out, err = zoo("trace", *line)
        assert code == 2 and out == "" and f"error: {message}" in err


# -- docs/trace.md -----------------------------------------------------------------------------------------------------


def test_the_page_names_every_metric_and_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "trace.md").read_text(encoding="utf-8")
    table = text.partition("| --- |")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in table for name in METRICS)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": Two(), "batches": [{"x": torch.randn(4, 6, 8), "domain": torch.arange(4) % 2}]}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert set(names["report"]) == set(METRICS) - {"modality", "label"}
