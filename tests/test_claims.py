"""The claims harness: statements and verdicts, equal terms, controls, runs that resume, cards; and every claim file."""

import json
import math
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from zoo import cli, hub
from zoo.claims import claim as claims
from zoo.claims import controls, result, runs
from zoo.claims.verdict import compare, overall, paired_interval, parse, student_quantile
from zoo.spec import ZooError
from zoo.train.run import train

SMALL = [
    "model.stack.num_layers=1",
    "model.stack.hidden_size=16",
    "model.stack.moe.num_experts=4",
    "model.stack.moe.experts.intermediate_size=16",
    "data.context=16",
    "data.bytes_per_domain=20000",
    "train.steps=3",
    "train.batch_size=4",
    "train.val_every=3",
    "train.val_batches=1",
    "train.save_every=1",
    "train.log_every=1",
]
CLAIM = {
    "claim": "Two experts are better than one.",
    "recipe": "language/mixtral_tiny",
    "set": SMALL,
    "contestants": {"system": [], "switch": ["model.stack.moe.balance.switch.coef=0.1"]},
    "metrics": {"loss": {"eval": "metrics.loss"}, "vio": {"log": "moe/layer*/max_vio", "steps": [1, 2]}},
    "expect": [{"loss": "system < 1.005 * switch"}],
    "limit": 8,
}


def make(**changes):
    return claims._part(claims.Claim, {**CLAIM, **changes}, "claim")


def written(tmp_path, **changes):
    from omegaconf import OmegaConf

    path = tmp_path / "tiny.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({**CLAIM, **changes})))
    return path


def zoo(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


# -- statements and verdicts -----------------------------------------------------------------------------------------


def test_student_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    assert student_quantile(0.975, 4) == pytest.approx(2.7764451051977987, rel=1e-9)
    for df in range(1, 31):
        assert student_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-8)


def test_the_interval_is_the_paired_one():
    a, b = [1.0, 1.3, 0.9, 1.2, 1.1], [1.2, 1.4, 1.2, 1.3, 1.25]
    low, high = paired_interval([x - y for x, y in zip(a, b, strict=True)])
    # by hand: differences -.2 -.1 -.3 -.1 -.15, mean -.17, deviation .0836660, half 2.776445 * .0836660 / sqrt 5
    assert (low, high) == pytest.approx((-0.17 - 0.103885, -0.17 + 0.103885), abs=1e-6)
    stats = pytest.importorskip("scipy.stats")
    assert (low, high) == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval(0.95)), rel=1e-9)
    assert paired_interval([1.0]) == (None, None)


def verdict(text, seeds=5, **values):
    (statement,) = parse("m", text, values)
    return compare(statement, {name: v[:seeds] for name, v in values.items()}).verdict


def test_verdicts():
    low, high, same = [1.0, 1.1, 0.9, 1.0, 1.05], [2.0, 2.1, 1.95, 2.0, 2.1], [1.0, 1.12, 0.9, 0.98, 1.05]
    assert verdict("a < b", a=low, b=high) == "holds"
    assert verdict("a > b", a=low, b=high) == "does not hold"
    assert verdict("b > a", a=low, b=high) == "holds"
    assert verdict("a < b", a=low, b=same) == "cannot be told here"
    assert verdict("a < 1.1 * b", a=low, b=same) == "holds", "a margin"
    assert verdict("b > 3 * a", a=low, b=high) == "does not hold"
    assert verdict("b > 1.5 * a", a=low, b=high) == "holds"
    assert verdict("a < 0.3", a=low) == "does not hold" and verdict("0.3 < a", a=low) == "holds"
    other, more = [v + 0.2 for v in low], [v - 0.1 for v in low]  # their mean is 0.05 above
    assert verdict("a < 0.5 * b + 0.5 * c", a=low, b=other, c=more) == "holds"
    assert verdict("a < 0.25 * b + 0.75 * c", a=low, b=other, c=more) == "does not hold"
    assert verdict("a < b", 4, a=low, b=high) is None, "four seeds give no verdict"


def test_a_claim_holds_when_all_of_it_does():
    assert overall(["holds", "holds"]) == "holds"
    assert overall(["holds", "cannot be told here"]) == "cannot be told here"
    assert overall(["cannot be told here", "does not hold"]) == "does not hold"
    assert overall(["holds", None]) is None


def test_statements():
    assert [str(s) for s in parse("m", "a < b < 2 * c", "abc")] == ["a < b", "b < 2 * c"]
    assert [str(s) for s in parse("m", "a < 0.5 * b + c", "abc")] == ["a < 0.5 * b + c"]
    for text, said in (
        ("a < d", "unknown contestant 'd'"),
        ("a", "compares no contestants"),
        ("1 < 2", "compares no contestants"),
        ("a < b - c", "neither a number nor"),
        ("a < b + ", "neither a number nor"),
    ):
        with pytest.raises(ZooError, match=said):
            parse("m", text, "abc")


# -- claim files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": {}}, "unknown config key 'claim.metric'; did you mean metrics"),
        ({"expect": []}, "needs expect"),
        ({"flops": "free"}, "needs a reason"),
        ({"expect": [{"lost": "system < switch"}]}, "unknown metric 'lost' in expect; did you mean loss"),
        ({"metrics": {"loss": {"eval": "a", "log": "b"}}}, "exactly one"),
        ({"metrics": {"loss": {"log": "b", "steps": [3, 1]}}}, r"must be \[first, last\]"),
        ({"contestants": {"system": 3}}, "is a section"),
        ({"controls": ["dens"]}, "dens"),
    ],
)
def test_mistakes_in_a_claim_are_named(changes, said):
    with pytest.raises(ZooError, match=said):
        make(**changes).statements()


@pytest.mark.parametrize("name", claims.claims())
def test_every_claim_is_fair_and_its_card_up_to_date(name):
    file = claims.find(name)
    claim = claims.read(file)
    controls.check(claim, claims.recipes(claim))
    if file.card.is_file() and f"<!-- claim: {name} -->" in (text := file.card.read_text()):
        picture = file.card.with_suffix(".png")
        section = result.markdown(file, claim, result.read(file), picture.name if picture.is_file() else None)
        assert section in text, f"the card is out of date; run: zoo reproduce {name} --plan --update-card"
    assert not file.results.is_file() or result.read(file), "the claim has changed since it was run; run it again"


# -- equal terms -----------------------------------------------------------------------------------------------------


def test_unequal_flops_are_refused():
    contestants = {"system": [], "wide": ["model.stack.moe.experts.intermediate_size=32"]}
    claim = make(contestants=contestants, expect=["system < wide"])
    with pytest.raises(ZooError, match=r"'wide' takes 16,512 .* 'system' 13,440, 22.9% apart, where 3% are"):
        controls.check(claim, claims.recipes(claim))
    claim = make(contestants=contestants, expect=["system < wide"], flops="free", reason="to see")
    controls.check(claim, claims.recipes(claim))


def test_unequal_samples_are_refused():
    contestants = {"system": [], "longer": ["train.steps=4"]}
    claim = make(contestants=contestants, expect=["system < longer"])
    with pytest.raises(ZooError, match=r"'longer' trains on 16 samples \(256 tokens\) and 'system' on 12 \(192\)"):
        controls.check(claim, claims.recipes(claim))
    contestants = {"system": [], "halves": ["train.batch_size=2", "train.accumulate=2"]}
    claim = make(contestants=contestants, expect=["system < halves"])
    controls.check(claim, claims.recipes(claim))


def test_controls_are_made_from_the_system():
    claim = make(controls=["dense", "dense_wide", "random_router"], set=["data.context=16"])
    trees = claims.recipes(claim)
    sizes = controls.check(claim, trees)
    assert list(trees) == ["system", "switch", "dense", "dense_wide", "random_router"]
    assert sizes["dense"].flops == pytest.approx(sizes["system"].flops, rel=0.01)
    assert sizes["dense"].parameters == pytest.approx(sizes["system"].active, rel=0.01)
    assert sizes["dense_wide"].parameters == pytest.approx(sizes["system"].parameters, rel=0.01)
    assert sizes["dense_wide"].flops > 2 * sizes["system"].flops
    dense = hub.create_model(
        "language/mixtral_tiny", **{k: v for k, v in trees["dense"]["model"].items() if k != "name"}
    )
    out = dense(**dense.dummy_inputs())
    assert all((layer.weight_TK == 1).all() for layer in out.routing), "every token passes with weight 1"


def test_controls_that_cannot_be_made_are_named():
    for recipe, said in (
        ("time_series/dlinear_etth1", "has no mixture"),
        ("time_series/patch_tst_etth1", "has no mixture"),
        ("time_series/seg_moe_etth1", "cannot be made of the layers of 'time_series/seg_moe'"),
    ):
        claim = make(recipe=recipe, set=[], contestants={"system": []}, controls=["dense"], expect=["system < dense"])
        with pytest.raises(ZooError, match=f"contestant 'dense': .*{said}.*; write the contestant out"):
            claims.recipes(claim)


def test_a_random_router_stays_as_it_was(tmp_path):
    claim = make(controls=["random_router"])
    trees = claims.recipes(claim)
    for name in ("system", "random_router"):
        tree = {**trees[name], "optim": {**trees[name]["optim"], "lr": 0.1, "warmup": 0}}
        train(tree, tmp_path / name, quiet=True)
        train({**tree, "optim": {**tree["optim"], "lr": 0.0}}, tmp_path / f"{name}-start", quiet=True)
    for name, same in (("system", False), ("random_router", True)):
        start, end = (hub.load(tmp_path / folder).model.state_dict() for folder in (f"{name}-start", name))
        (key,) = (key for key in start if key.endswith("router.scorer.weight"))
        assert bool((start[key] == end[key]).all()) is same
        assert not (start["head.weight"] == end["head.weight"]).all()


# -- runs ------------------------------------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    claim = make(
        contestants={**CLAIM["contestants"], "one_expert": {"of": "system", "set": ["model.stack.moe.router.k=1"]}}
    )
    trees, trained = claims.recipes(claim), []

    def killed_at(count):
        def observed(tree, folder, **kwargs):
            if len(trained) == count:
                raise KeyboardInterrupt
            trained.append(folder.name)
            return train(tree, folder, **kwargs)

        monkeypatch.setattr(runs, "train", observed)

    killed_at(3)
    with pytest.raises(KeyboardInterrupt):
        runs.run_all(claim, trees, tmp_path, 2, print)
    killed_at(99)
    values, origins = runs.run_all(claim, trees, tmp_path, 2, print)
    assert len(trained) == len(set(trained)) == 4, "two trained contestants, two seeds, each once"
    again, _ = runs.run_all(claim, trees, tmp_path, 2, print)
    assert again == values and len(trained) == 4
    assert {name: len(v) for name, v in values["loss"].items()} == {"system": 2, "switch": 2, "one_expert": 2}
    assert values["loss"]["system"] != values["loss"]["switch"], "settings reach the run"
    assert values["loss"]["one_expert"][0] != values["loss"]["system"][0], "evaluated under settings of its own"
    assert values["loss"]["system"][0] != values["loss"]["system"][1], "seeds differ"
    assert len(origins["commits"]) == 1 and any("corpus=" in entry for entry in origins["data"])
    sizes = {name: controls.size(tree) for name, tree in trees.items()}
    file = claims.File("x/y", written(tmp_path), tmp_path, tmp_path)
    found = result.result(file, claim, trees, sizes, values, origins)
    assert found["verdict"] is None and found["statements"][0]["low"] is not None

    trees["switch"]["optim"]["lr"] = 1e-4
    runs.run_all(claim, trees, tmp_path, 2, print)
    assert len(trained) == 6, "other settings are another run"


def test_a_shared_stage_is_trained_once_a_seed(tmp_path, monkeypatch):
    stages = "stages={body: {steps: 2, trainable: ['embed*']}, head: {steps: 2, trainable: ['head*']}}"
    small = [s.replace("train.steps=3", "train.steps=4") for s in SMALL]
    claim = make(set=[*small, stages], share=["body"])
    trained, real = [], train

    def observed(tree, folder, **kwargs):
        trained.append((folder.name, list(tree["stages"])))
        return real(tree, folder, **kwargs)

    monkeypatch.setattr(runs, "train", observed)
    values, _ = runs.run_all(claim, claims.recipes(claim), tmp_path, 2, print)
    assert [stages for _, stages in trained] == 2 * [["body"], ["head"], ["head"]]
    assert len(values["loss"]["system"]) == 2
    for seed in range(2):
        names = [name for name, _ in trained if name.endswith(f"-s{seed}")]
        states = [hub.load(tmp_path / "language" / name).model.state_dict() for name in names]
        assert len(states) == 3 and all((each["embed.weight"] == states[0]["embed.weight"]).all() for each in states)
        assert not (states[0]["head.weight"] == states[1]["head.weight"]).all()
    with pytest.raises(ZooError, match="must be the first of its stages"):
        claims.recipes(make(set=[*small, stages], share=["head"]))
    other = {"system": [], "switch": ["stages.body.lr=1"]}
    with pytest.raises(ZooError, match="'switch': stage 'body' is shared and trained as system says"):
        claims.recipes(make(set=[*small, stages], share=["body"], contestants=other))


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
    path = written(tmp_path)
    claim = claims.read(claims.find(str(path)))
    trees = claims.recipes(claim)
    whole, _ = runs.run_all(claim, trees, tmp_path / "whole", 1, print)
    code = (
        "import os, sys, torch, zoo.train.checkpoints as c\n"
        "from zoo import cli\n"
        "save = c.AtomicIO.save_checkpoint\n"
        "def once(self, checkpoint, path, storage_options=None):\n"
        "    save(self, checkpoint, path, storage_options)\n"
        "    if checkpoint['global_step'] == 2: os.kill(os.getpid(), 9)\n"
        "c.AtomicIO.save_checkpoint = once\n"
        f"sys.argv = ['zoo', 'reproduce', {str(path)!r}, 'seeds=1', '--out', {str(tmp_path)!r}]\n"
        "cli.main()\n"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert dead.returncode == -9, dead.stderr
    folder = tmp_path / "claims" / "runs"
    (checkpoint,) = folder.rglob("last.ckpt")
    assert not list(folder.rglob("eval.json"))
    resumed, _ = runs.run_all(claim, trees, folder, 1, print)
    assert resumed["loss"] == whole["loss"]
    assert len(json.loads((checkpoint.parents[1] / "run.json").read_text())["starts"]) == 2


def test_one_process_at_a_time(tmp_path, monkeypatch):
    claim, told, order = make(), [], []
    monkeypatch.setattr(runs, "_run_all", lambda *arguments: order.append("run") or ({}, {}))
    other = FileLock(tmp_path / ".lock")
    other.acquire()
    waiting = threading.Thread(target=runs.run_all, args=(claim, {}, tmp_path, 1, told.append))
    waiting.start()
    while not told:
        time.sleep(0.01)
    order.append("release")
    other.release()
    waiting.join(timeout=30)
    assert "waiting for it" in told[0] and order == ["release", "run"]


def test_closed_form_models_compete(tmp_path):
    node = {
        "claim": "A longer look back helps.",
        "recipe": "time_series/ridge_etth1",
        "set": ["data={name: time_series/statsmodels, series: elnino, horizon: 6}"],
        "contestants": {
            "long": ["model.context=48", "data.context=48", "model.horizon=6"],
            "short": ["model.context=6", "data.context=6", "model.horizon=6"],
        },
        "metrics": {"mse": {"eval": "metrics.mse"}},
        "expect": ["long < short"],
        "flops": "free",
        "reason": "one matrix each",
    }
    claim = claims._part(claims.Claim, node, "claim")
    trees = claims.recipes(claim)
    controls.check(claim, trees)
    values, _ = runs.run_all(claim, trees, tmp_path, 1, print)
    assert all(math.isfinite(v) for row in values["mse"].values() for v in row)


def test_metrics_are_read_from_documents_and_logs(tmp_path):
    (tmp_path / "eval.json").write_text(
        json.dumps({"metrics": {"loss": 2.0}, "load": [{"v": 1.0}, {"v": 3.0}], "shares": [[0.5, 0.3, 0.2], [1, 0, 0]]})
    )
    (tmp_path / "trace.json").write_text(json.dumps({"domain": {"nmi": [0.1, 0.3]}}))
    log = tmp_path / "logs" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,moe/layer0/v,moe/layer1/v,other\n0,1,2,9\n1,3,4,9\n2,50,60,9\n")

    def value(**settings):
        return runs.read_metric("m", claims.Metric(**settings), tmp_path)

    assert value(eval="metrics.loss") == 2.0 and value(eval="load.v") == 2.0 and value(eval="load.v", layers=[1]) == 3.0
    assert value(eval="shares", experts=[1, 2], times=4) == pytest.approx(4 * 0.25)
    assert value(trace="domain.nmi") == pytest.approx(0.2)
    assert value(log="moe/layer0/v", above=3.0) == 2 and value(log="moe/layer*/v", above=55.0) == 3
    assert value(log="moe/layer0/v", above=99.0) == 4, "one more than the last step where it never does"
    with pytest.raises(ZooError, match="needs a log"):
        value(eval="metrics.loss", above=1.0)
    assert value(log="moe/layer*/v", steps=[1, 2]) == 2.5 and value(log="moe/layer1/v", steps=[3, 3]) == 60
    for settings, said in (
        ({"eval": "metrics.lost"}, "at 'lost' there is loss"),
        ({"eval": "load.v", "layers": [2]}, "has 2 MoE layers"),
        ({"eval": "shares"}, "not to numbers"),
        ({"log": "x*"}, "the log has no x"),
    ):
        with pytest.raises(ZooError, match=said):
            value(**settings)


# -- the command -----------------------------------------------------------------------------------------------------


def test_smoke_and_card(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path)
    assert zoo(monkeypatch, "reproduce", path, "--smoke") == 0
    assert "no verdict" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()
    assert zoo(monkeypatch, "reproduce", path, "--plan", "--update-card") == 0
    card = tmp_path / "tiny.md"
    assert "**not run yet**" in card.read_text()
    card.write_text(card.read_text().replace("# tiny", "# Tiny\n\nmine"))
    assert zoo(monkeypatch, "reproduce", path, "seeds=2", "--update-card", "--json") == 0
    out = capsys.readouterr().out
    document = json.loads(out[out.index("{") :])
    assert document["seeds"] == 2 and document["tokens"] == 192
    text = card.read_text()
    assert "not run yet" not in text and text.startswith("# Tiny\n\nmine") and text.count("<!-- claim: tiny -->") == 1
    assert "no verdict" in text and "| system |" in text and "![values by seed](tiny.png)" in text
    assert (tmp_path / "tiny.png").is_file() and json.loads(
        (tmp_path / "results" / "tiny.json").read_text()
    ) == document
    file = claims.find(str(path))
    assert result.read(file) == document
    written(tmp_path, limit=4)
    assert result.read(file) is None, "the claim has changed since"
    file.results.write_text("{")
    with pytest.raises(ZooError, match=r"tiny\.json' cannot be read: Expecting"):
        result.read(file)


def test_all_claims_are_listed(monkeypatch, capsys):
    assert zoo(monkeypatch, "reproduce", "--list", "--json") == 0
    rows = {row["name"]: row["verdict"] for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(claims.claims())
    assert set(rows.values()) <= {"not run yet", "holds", "does not hold", "cannot be told here"}


def test_a_broken_claim_hides_no_other(monkeypatch, capsys, tmp_path):
    (tmp_path / "odd.yaml").write_text("clame: x\n")
    known = {"a/odd": claims.find(str(tmp_path / "odd.yaml")), "a/tiny": claims.find(str(written(tmp_path)))}
    monkeypatch.setattr(claims, "claims", lambda: known)
    assert zoo(monkeypatch, "reproduce", "--list", "--json") == 0
    odd, tiny = json.loads(capsys.readouterr().out)
    assert odd["verdict"] == "broken" and "unknown config key 'claim.clame'" in odd["by"]
    assert tiny["claim"] == CLAIM["claim"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a claim"),
        (("language/bipp",), "no claim 'language/bipp'; did you mean language/bip"),
        (("language/bip", "train.steps=3"), "'train' is no setting of zoo reproduce"),
        (("language/bip", "seeds=0"), "seeds=0 must be at least 1"),
        (("language/bip", "--smoke", "seeds=0"), "seeds=0 must be at least 1"),
        (("none.yaml",), "does not exist"),
    ],
)
def test_mistakes_on_the_command_line(arguments, said, monkeypatch, capsys):
    assert zoo(monkeypatch, "reproduce", *arguments) == 2
    assert said in capsys.readouterr().err
