"""Stages: each trains what it says, on what it says, from where it says; a run that is cut off ends the same."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zoo import config as zc
from zoo import hub, registry
from zoo.moe import MoE, MoEConfig, RouteContext, give
from zoo.spec import ZooError
from zoo.train.logs import read_logs
from zoo.train.module import Module
from zoo.train.recipe import Recipe, Stage, read_recipe
from zoo.train.run import resume_tree, train
from zoo.train.stages import keep_statistics

SMALL = (
    "model.stack.num_layers=2",
    "model.stack.hidden_size=16",
    "data.series=elnino",
    "data.context=24",
    "data.horizon=8",
    "train.batch_size=4",
    "train.val_every=2",
    "train.val_batches=1",
    "train.save_every=1",
    "train.log_every=1",
    "optim.lr=1e-2",
    "device=cpu",
)
TWO = (
    "stages.heads.steps=3",
    "stages.heads.trainable=['*heads*']",
    "stages.joint.steps=4",
    "stages.joint.lr=1e-3",
    "stages.joint.groups={'*router*': 0.0}",
)


def tree(*overrides: str, steps: int = 2):
    return read_recipe("time_series/time_moe_tiny", [*SMALL, f"train.steps={steps}", *overrides])


def states(folder, *names):
    return [hub.load(folder / "stages" / name).model.state_dict() for name in names]


def changed(one, other):
    return {key for key in one if not torch.equal(one[key], other[key])}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tree(*TWO, steps=7), tmp_path_factory.mktemp("stages") / "run", quiet=True)


def test_a_stage_trains_what_it_says(whole):
    initial, heads, joint = states(whole, "initial", "heads", "joint")
    final = hub.load(whole).model.state_dict()
    assert changed(initial, heads) and all("heads" in key for key in changed(initial, heads))
    assert not any("router" in key for key in changed(heads, joint))  # a factor of 0 on the learning rate
    assert any("experts" in key for key in changed(heads, joint))
    assert not changed(joint, final)


def test_learning_rates_of_groups(monkeypatch):
    t = tree(*TWO, "stages.joint.groups={'*': 0.5, '*router*': 0.2}", steps=7)
    recipe = zc.to_object(Recipe, t)
    model = hub.create_model(t["model"]["name"])
    task = zc.build("task", t["task"])
    module = Module(model, task, recipe.optim, recipe.stages["joint"], t)
    module._trainer = SimpleNamespace(precision="32-true")
    rates = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in module.configure_optimizers()["optimizer"].param_groups:
        rates |= {names[id(p)]: group["initial_lr"] for p in group["params"]}
    assert set(rates) == set(names.values())
    assert all(rate == pytest.approx(1e-4 if "router" in name else 5e-4) for name, rate in rates.items())


def test_steps_of_the_log_go_on(whole):
    steps, _ = read_logs(whole)["train/loss"]
    assert steps == list(range(7))


@pytest.mark.parametrize("cut", [1, 3, 5])  # inside the first, between the two, inside the second
def test_a_run_that_is_cut_off_ends_the_same(cut, whole, tmp_path, monkeypatch):
    steps, step = [], Module.training_step

    def failing(self, batch, batch_idx):
        if len(steps) == cut:
            raise RuntimeError("cut off")
        steps.append(self.global_step)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Module, "training_step", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        train(tree(*TWO, steps=7), tmp_path / "run", quiet=True)
    monkeypatch.setattr(Module, "training_step", step)
    train(tree(*TWO, steps=7), tmp_path / "run", quiet=True)
    for name in ("model", "stages/heads", "stages/joint"):
        one, other = (folder / name / "model.safetensors" for folder in (whole, tmp_path / "run"))
        assert one.read_bytes() == other.read_bytes(), name


def test_stages_may_start_anew_see_other_data_and_switch_losses_off(tmp_path):
    folder = train(
        tree(
            "stages.one={steps: 2}",
            "stages.two={steps: 2, start: initial, losses: {switch: 0.0}, data: {series: sunspots}}",
            "stages.two.router.mode=only",
            "optim.weight_decay=0.0",
            steps=4,
        ),
        tmp_path / "run",
        quiet=True,
    )
    initial, one, two = states(folder, "initial", "one", "two")
    assert any("router" in key for key in changed(initial, one))
    # No router moved: the given expert has weight 1 and the balance loss is off. Of the experts, only the first did.
    assert not any(".router." in key for key in changed(initial, two))
    moved = [key for key in changed(initial, two) if ".experts." in key]
    assert moved and all(not torch.equal(two[key][0], initial[key][0]) for key in moved)
    assert all(torch.equal(two[key][1:], initial[key][1:]) for key in moved)
    losses = read_logs(folder)["train/switch"][0]
    assert losses == [0, 1, 2, 3]  # what is switched off is still seen


def test_a_given_expert_is_the_dense_layer():
    model = hub.create_model("time_series/time_moe_tiny", stack={"hidden_size": 64}).eval()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(2, 5, 64)
    give(model, 2)
    y, out = moe(x, RouteContext())
    assert (out.index_TK[:, 0] == 2).all() and out.used_TK.sum() == 10 and out.weight_TK[:, 0].eq(1).all()
    other, _ = moe(x, RouteContext())
    assert torch.equal(y, other)
    label = torch.tensor([[0, 1, 2, 3, 0]] * 2)
    give(model, "label")
    _, out = moe(x, RouteContext(label=label))
    assert torch.equal(out.index_TK[:, 0], label.flatten())
    with pytest.raises(ZooError, match="tags no token with a label"):
        moe(x, RouteContext())
    give(model, None)
    assert (moe(x, RouteContext())[1].used_TK.sum()) == 20
    with pytest.raises(ZooError, match="expert 99 is to be given"):
        give(model, 99)


def test_several_given_experts_are_slices_of_one_dense_layer():
    model = hub.create_model("time_series/time_moe_tiny", **{"stack.hidden_size": 64}).eval()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    moe.shared = None
    x = torch.randn(2, 5, 64)
    alone = []
    for expert in (1, 3):
        give(model, expert)
        alone.append(moe(x, RouteContext())[0])
    give(model, [1, 3])
    y, out = moe(x, RouteContext())
    torch.testing.assert_close(y, alone[0] + alone[1])
    assert out.used_TK.sum() == 20 and set(out.index_TK[out.used_TK].tolist()) == {1, 3}
    with pytest.raises(ZooError, match="3 experts are to be given, but a token has 2 slots"):
        give(model, [0, 1, 2])
    with pytest.raises(ZooError, match="expert 99 is to be given"):
        give(model, [0, 99])


def test_given_experts_leave_nothing_to_shared_ones_that_the_router_weighs():
    router = {"name": "composed", "selector": {"name": "topk", "k": 2}, "weigher": {"name": "joint_softmax"}}
    config = zc.make(MoEConfig, num_experts=4, router=router, shared={"name": "swiglu"})
    moe, x = MoE(config, 16), torch.randn(2, 5, 16)
    moe.reset_parameters(0.2)
    assert moe(x, RouteContext())[1].shared_weight.min() > 0
    give(moe, [0, 1])
    y, out = moe(x, RouteContext())
    assert not out.shared_weight.any()
    moe.shared = None
    torch.testing.assert_close(y, moe.apply_experts(x, out._replace(shared_weight=None)))


def test_a_resumed_run_keeps_its_length(whole):
    assert resume_tree(whole, ["train.save_every=5"])["stages"]["joint"]["steps"] == 4
    with pytest.raises(ZooError, match=r"'train.steps=9' cannot change"):
        resume_tree(whole, ["train.steps=9"])


class Negate:
    """Starts from an earlier stage with its sign turned."""

    @dataclass
    class Config:
        of: str = "one"

    def __init__(self, config):
        self.of = config.of

    def __call__(self, model, states):
        assert list(states) == ["initial", "one"]
        hub.folder.fill(model, {key: -value for key, value in states[self.of].items()}, self.of)


def test_an_action_changes_the_weights_first(tmp_path, monkeypatch):
    find = registry.find

    def with_ours(kind, name):
        return SimpleNamespace(load=lambda: Negate) if (kind, name) == ("init action", "negate") else find(kind, name)

    monkeypatch.setattr(registry, "find", with_ours)
    t = tree("stages.one={steps: 1}", "stages.two={steps: 1, lr: 0.0, init: {name: negate}}")
    one, two = states(train(t, tmp_path / "run", quiet=True), "one", "two")
    assert all(torch.equal(-one[key], two[key]) for key in one if one[key].is_floating_point())


def test_load_takes_what_matches(tmp_path):
    one = train(tree("seed=1", steps=1), tmp_path / "one", quiet=True)
    load = f"init: {{name: load, path: {one}, what: ['*heads*']}}"
    t = tree(f"stages.only={{steps: 1, lr: 0.0, {load}}}", steps=1)
    start, end = states(train(t, tmp_path / "run", quiet=True), "initial", "only")
    given = hub.load(one).model.state_dict()
    heads = {key for key in start if "heads" in key}
    assert changed(start, end) == heads and not changed({k: end[k] for k in heads}, given)
    for what, message in (("['x*']", "has no tensor"), ("['*']", "and .* in the model")):
        wrong = f"init: {{name: load, path: {one}, what: {what}}}"
        with pytest.raises(ZooError, match=message):
            other = tree(f"stages.only={{steps: 1, {wrong}}}", "model.stack.hidden_size=32", steps=1)
            train(other, tmp_path / what.strip("[]'*"), quiet=True)


def test_frozen_batch_norms_keep_their_statistics():
    frozen, free = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    frozen.requires_grad_(False)
    model = torch.nn.Sequential(frozen, free).train()
    keep_statistics(model)
    model(torch.randn(8, 3) + 5)
    assert frozen.running_mean.eq(0).all() and not free.running_mean.eq(0).any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.one={}"], "'stages.one.steps' has no default"),
        (["stages.one.steps=2", "train.steps=5"], "the stages one take 2"),
        (["stages.one={steps: 2, start: two}"], "'two' is no earlier stage"),
        (["stages.one={steps: 2, step: 2}"], "unknown config key 'stages.one.step'"),
        (["stages={'../x': {steps: 2}}"], "cannot be the name of a stage"),
        (["stages.initial.steps=2"], "cannot be the name of a stage"),
        (["stages.one={steps: 2, data: {contxt: 3}}"], "contxt"),
        (["stages.one={steps: 2, trainable: [nothing.*]}"], "matches 'nothing.*'"),
        (["stages.one={steps: 2, trainable: ['*router*']}", "freeze=['*router*']"], "leaves nothing to train"),
        (["stages.one={steps: 2, losses: {swich: 0}}"], "scales the loss 'swich'"),
        (["stages.one={steps: 2, router: {mode: only, expert: 50}}"], "expert 50 is to be given"),
        (["stages.one={steps: 2, router: {mode: label}}"], "tags no token with a label"),
        (["train.ema=1.0"], "must be below 1"),
    ],
)
def test_mistakes_are_named(overrides, message, tmp_path):
    with pytest.raises(ZooError) as error:
        train(tree(*overrides), tmp_path / "run", quiet=True)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_average_of_the_weights_is_what_is_saved(tmp_path, monkeypatch):
    seen = []
    step = Module.optimizer_step

    def noting(self, *args, **kwargs):
        step(self, *args, **kwargs)
        seen.append({name: p.detach().clone() for name, p in self.model.named_parameters()})

    monkeypatch.setattr(Module, "optimizer_step", noting)
    t = tree("train.steps=5", "train.val_every=5", "train.ema=0.25")
    whole = train(t, tmp_path / "whole", quiet=True)
    model = hub.load(whole).model
    for name, p in model.named_parameters():
        mean = seen[0][name]
        for n, later in enumerate(seen[1:], 1):
            mean = torch.lerp(later[name], mean, min(0.25, (1 + n) / (10 + n)))  # 2/11, 3/12 and then 0.25
        torch.testing.assert_close(p, mean)

    def failing(self, batch, batch_idx, real=Module.training_step):
        if self.global_step == 3:
            raise RuntimeError("cut off")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="cut off"):
        patch.setattr(Module, "training_step", failing)
        train(t, tmp_path / "cut", quiet=True)
    train(t, tmp_path / "cut", quiet=True)
    one, other = (folder / "model" / "model.safetensors" for folder in (whole, tmp_path / "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_the_page_on_stages_is_true(tmp_path):
    text = (Path(__file__).parent.parent / "docs/stages.md").read_text()
    (tmp_path / "page.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    t = read_recipe(str(tmp_path / "page.yaml"), ["device=cpu"])
    assert t["train"]["steps"] == 400
    train(t, tmp_path / "run", fast_dev_run=True, quiet=True)
    fields = {f.name for f in dataclasses.fields(Stage)}
    rows = text.partition("|---|---|\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows.splitlines()))) == fields
