"""Drawing pictures: seeds, guidance, prompts, judges, files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from zoo import config as zc
from zoo import create_model, hub
from zoo.images import read_image
from zoo.nn.transformer import initialise
from zoo.spec import ZooError
from zoo_diffusion.sampling import guided, sample
from zoo_diffusion.tasks.generation import Generation
from zoo_diffusion.tasks.judge import frechet, halves, stacked, train_judge
from zoo_diffusion.tasks.routing import information


def task_of(**settings: object) -> Generation:
    return zc.build("task", zc.resolve_part("task", {"name": "diffusion/generation", **settings}, "task"))


def digits():
    return zc.build("data set", zc.resolve_part("data set", {"name": "diffusion/digits"}, "data"))


def random_model(name: str = "dit_moe_tiny", **settings: object):
    """A model with weights that do something, as a trained one has."""
    torch.manual_seed(1)
    model = create_model(f"diffusion/{name}", **{"stack.num_layers": 2, **settings})
    initialise(model, 0.08)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a digit model, saved as a training saves them."""
    folder, task = tmp_path_factory.mktemp("model"), {"name": "diffusion/generation"}
    node = zc.resolve_part("task", {**task, "sampler": {"name": "diffusion/euler", "steps": 4}}, "task")
    hub.save(folder, random_model(), task=node, preprocessing=digits().preprocessing)
    return folder


@pytest.mark.parametrize("objective", ["rectified_flow", "ddpm"])
def test_a_seed_gives_the_same_picture_at_any_batch_size(objective: str) -> None:
    task, model = (
        task_of(objective=f"diffusion/{objective}", sampler={"name": "diffusion/heun", "steps": 6}),
        random_model(),
    )
    condition = torch.arange(40) % 10
    with torch.no_grad():
        whole = sample(model, task.objective, task.sampler, condition, 40, guidance=2.0, seed=5)
        for batch_size in (1, 7, 64):
            parts = sample(
                model, task.objective, task.sampler, condition[:9], 9, guidance=2.0, seed=5, batch_size=batch_size
            )
            assert (parts - whole[:9]).abs().max() < 1e-4 * whole.abs().max()
        other = sample(model, task.objective, task.sampler, condition[:9], 9, guidance=2.0, seed=6)
    assert (other - whole[:9]).abs().max() > 0.1 and whole.std() > 0.1


def test_the_ancestral_chain_draws_the_same_noise_at_any_batch_size() -> None:
    task = task_of(objective="diffusion/ddpm", sampler={"name": "diffusion/ancestral", "steps": 5})
    model, condition = random_model(learn_sigma=True), torch.arange(6)
    with torch.no_grad():
        one, many = (
            sample(model, task.objective, task.sampler, condition, 6, seed=3, batch_size=b, guidance=1.5)
            for b in (1, 6)
        )
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_guidance_of_one_is_none_bit_for_bit() -> None:
    model, x, t = random_model(learn_sigma=True), torch.randn(3, 1, 8, 8), torch.rand(3)
    label = torch.tensor([1, 2, 3])
    with torch.no_grad():
        known = model(x, t, label).prediction_BCHW
        unknown = model(x, t).prediction_BCHW
        assert torch.equal(guided(model, label, 1.0)(x, t), known)
        strong = guided(model, label, 3.0)(x, t)
    torch.testing.assert_close(strong[:, :1], unknown[:, :1] + 3 * (known - unknown)[:, :1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(strong[:, 1:], known[:, 1:], rtol=1e-4, atol=1e-5)
    latent, x = random_model(channels=4), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        known, unknown = latent(x, t, label).prediction_BCHW, latent(x, t).prediction_BCHW
        strong = guided(latent, label, 3.0)(x, t)
    torch.testing.assert_close(strong, unknown + 3 * (known - unknown), rtol=1e-4, atol=1e-5)  # on all four channels


def test_predict_and_its_files(saved: Path, tmp_path: Path) -> None:
    predictor = hub.load(saved)
    result = predictor.predict(n=12)
    assert result.prompts == [*"0123456789", "0", "1"] and result.pixels_NHWC.shape == (12, 8, 8, 3)
    same = predictor.predict(prompt="3", n=2, seed=0)
    assert same.prompts == ["3", "3"] and not np.array_equal(same.pixels_NHWC[0], result.pixels_NHWC[0])
    assert predictor.predict(prompt="3, 7", n=3).prompts == ["3", "7", "3"]
    files = predictor.write(predictor.predict(prompt="3,7", n=4), tmp_path)
    assert [f.name for f in files] == ["grid.png", "0.png", "1.png", "2.png", "3.png", "prompts.txt"]
    assert read_image(files[0]).pixels_HWC.shape[1::-1] == (2 * 66 + 2, 2 * 66 + 2) and read_image(
        files[1]
    ).pixels_HWC.shape[1::-1] == (8, 8)
    assert files[-1].read_text() == "3\n7\n3\n7\n"
    chain = predictor.predict(n=2, steps=2, sampler="ancestral", objective="ddpm", guidance=1)
    quick = predictor.predict(n=2, steps=2, sampler="heun", guidance=1)
    assert not np.array_equal(quick.pixels_NHWC, chain.pixels_NHWC)
    assert not np.array_equal(quick.pixels_NHWC, result.pixels_NHWC[:2])


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"prompt": "eleven"}, "no class 'eleven'; the classes are 0, 1, 2"),
        ({"n": 0}, "n=0 must be a whole number from 1"),
        ({"n": 2.5}, "n=2.5 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"steps": "many"}, "steps='many' must be"),
        ({"guidance": "strong"}, "guidance='strong' must be a number from 0"),
        ({"guidance": float("nan")}, "must be a number from 0"),
        ({"sampler": "hean"}, "diffusion/heun"),
        ({"sampler": "ancestral"}, "is DDPM's own"),
        ({"objective": "dpm"}, "diffusion/ddpm"),
        ({"autoencoder": "/nowhere"}, "diffusers"),
        ({"promt": "3"}, "unknown input 'promt'"),
    ],
)
def test_mistakes_are_named(saved: Path, inputs: dict, told: str) -> None:
    with pytest.raises(ZooError, match=told):
        hub.load(saved).predict(**inputs)


def test_prompts_of_captions() -> None:
    model, task = random_model("dit_moe_text", image_size=8), task_of(sampler={"name": "diffusion/euler", "steps": 2})
    preprocessing = {"text": {"buckets": 2048, "length": 64}, "examples": ["red heart", "bug"]}
    asked = {"prompt": None, "n": 3, "seed": 0, "steps": None, "guidance": None, "sampler": None}
    asked |= {"objective": None, "autoencoder": None}
    with torch.no_grad():
        without = task.predict(model, preprocessing, asked)
        heart = task.predict(model, preprocessing, {**asked, "prompt": "Red heart"})
        empty = task.predict(model, preprocessing, {**asked, "prompt": "  "})
        with pytest.raises(ZooError, match="has no word in it"):
            task.predict(model, preprocessing, {**asked, "prompt": "!?"})
    assert without.prompts == ["red heart", "bug", "red heart"] and "no prompt=" in without.notes[0]
    assert heart.prompts == ["Red heart"] * 3 and heart.notes == []
    assert empty.notes == ["the prompt is empty: pictures of anything, without guidance"]
    assert np.array_equal(heart.pixels_NHWC[0], without.pixels_NHWC[0]), "case does not matter"
    assert not np.array_equal(heart.pixels_NHWC, empty.pixels_NHWC)


LABELS, GREY = {"classes": ["a"]}, {"size": 8, "channels": 1}


@pytest.mark.parametrize(
    ("data", "model", "told"),
    [
        ({**LABELS, "size": 9, "channels": 1}, {}, "model.channels=1 model.image_size=9, or data.size"),
        ({**LABELS, "size": 8, "channels": 3}, {}, "model.channels=3 model.image_size=8"),
        ({**GREY, "text": {}}, {}, "captions, which the model cannot read.*diffusion/text"),
        ({**GREY, "classes": ["a"] * 11}, {}, "the data have 11 classes"),
        ({**GREY, "text": {"buckets": 9, "length": 4}}, {"condition": "diffusion/text"}, "make data.text and"),
    ],
)
def test_data_that_do_not_fit_the_model(data: dict, model: dict, told: str) -> None:
    with pytest.raises(ZooError, match=told):
        task_of().match(random_model(**model), SimpleNamespace(preprocessing=data), {})


def test_other_classes_than_it_was_trained_on_are_refused() -> None:
    found = {"size": 8, "channels": 1, "classes": ["cat", "dog"]}
    with pytest.raises(ZooError, match=r"2 classes \(cat, dog, ...\) and the model was made for ant, bee"):
        task_of().match(random_model(), SimpleNamespace(preprocessing=found), {"classes": ["ant", "bee"]})


def test_the_condition_is_hidden_from_some_and_validation_is_always_the_same() -> None:
    data, model = digits(), random_model().train()
    batch = {key: torch.stack([data.split("val")[n][key] for n in range(16)]) for key in ("image", "label", "index")}
    seen = []
    table = model.condition.forward
    model.condition.forward = lambda label: seen.append(label) or table(label)
    task_of(drop=1.0).loss(model, batch)
    task_of(drop=0.0).loss(model, batch)
    assert seen[0].tolist() == [10] * 16 and torch.equal(seen[1], batch["label"])
    model.eval()
    values = []
    for rows in (range(16), range(15, -1, -1)):
        metrics = task_of().metrics()
        for row in rows:
            with torch.no_grad():
                task_of().update(metrics, model, {key: value[row : row + 1] for key, value in batch.items()})
        values.append(metrics.compute()["loss"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_judge_knows_real_pictures_and_says_so_twice() -> None:
    data = digits()
    train, test = (stacked(data.split(s), "label", list(range(n))) for s, n in (("train", 600), ("test", 359)))
    judge, again = (train_judge(*train, classes=10, buckets=0, epochs=6) for _ in range(2))
    assert judge.right(*test).mean() > 0.9
    assert judge.right(test[0], (test[1] + 1) % 10).mean() < 0.05
    assert torch.equal(judge.features(test[0]), again.features(test[0]))
    real = judge.features(test[0])
    floor, noise = halves(real, real), halves(judge.features(torch.randn_like(test[0])), real)
    assert floor > 0 and noise > 5 * floor


def test_a_caption_judge_ranks() -> None:
    torch.manual_seed(0)
    text = torch.randint(1, 50, (40, 4))
    x = torch.randn(40, 3, 16, 16)
    judge = train_judge(x, text, classes=0, buckets=50, epochs=60)
    assert judge.right(x, text).mean() > 0.8
    assert judge.right(x, text.roll(1, 0)).mean() < 0.2
    assert judge.right(x[:5], text[:5]).shape == (5,)


def test_frechet_of_known_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(200_000, 3, generator=generator)
    two = torch.randn(200_000, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet(one, two) == pytest.approx(1 + 1 + 0.25, rel=0.02)  # |m|^2 + sum (s1 - s2)^2
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_assess_judges_what_is_drawn() -> None:
    data, model = digits(), random_model()
    task = task_of(judge_epochs=3, drawn=24, sampler={"name": "diffusion/euler", "steps": 2})
    with torch.inference_mode():
        found = task.assess(model, data, "test", None)
    assert set(found) == {"agreement", "agreement_real", "frechet", "frechet_floor"}
    assert found["agreement"] < 0.5 < found["agreement_real"] and found["frechet"] > found["frechet_floor"]


def test_routing_by_noise_and_what_it_tells(tmp_path: Path) -> None:
    task, data = task_of(sampler={"name": "diffusion/euler", "steps": 2}), digits()
    files = task.show(random_model(), data, tmp_path)
    assert [f.name for f in files] == ["samples.png", "samples.txt", "routing_by_noise.png"]
    assert read_image(files[0]).pixels_HWC.shape[1::-1] == (10 * 66 + 2, 3 * 66 + 2)
    assert [f.name for f in task.show(random_model("dit_tiny"), data, tmp_path)] == ["samples.png", "samples.txt"]
    assert information(np.array([[5, 0], [0, 5]])) == pytest.approx(1.0)
    assert information(np.array([[3, 6], [1, 2]])) == pytest.approx(0.0)


def test_latents_of_an_autoencoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in with diffusers' interface: halves the picture three times, and gives it back."""

    class AutoencoderKL(torch.nn.Module):
        config = SimpleNamespace(latent_channels=4, block_out_channels=[1, 1, 1, 1])

        @classmethod
        def from_pretrained(cls, path, use_safetensors, local_files_only):
            assert use_safetensors and local_files_only
            return cls()

        def encode(self, x):
            z = torch.nn.functional.avg_pool2d(x, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=z))

        def decode(self, z):
            return SimpleNamespace(sample=z[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))

    space = {"name": "diffusion/diffusers", "path": str(tmp_path)}
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ZooError, match="needs diffusers; run: pip install"):
        task_of(space=space).space.shape(3, 64)
    module = ModuleType("diffusers")
    module.AutoencoderKL = AutoencoderKL
    monkeypatch.setitem(sys.modules, "diffusers", module)
    with pytest.raises(ZooError, match="holds no autoencoder"):
        task_of(space=space).space.shape(3, 64)
    (tmp_path / "config.json").write_text("{}")
    task = task_of(space=space, sampler={"name": "diffusion/euler", "steps": 2})
    assert task.space.shape(3, 64) == (4, 8)
    model = random_model(channels=4)
    task.match(model, SimpleNamespace(preprocessing={"size": 64, "channels": 3, "classes": ["a"]}), {})
    batch = {"image": torch.rand(2, 3, 64, 64), "label": torch.tensor([0, 1])}
    task.loss(model, batch).loss.backward()
    flat = torch.full((1, 3, 64, 64), 0.25)
    torch.testing.assert_close(task.space.decode(task.space.encode(flat)), flat)
    given = {"prompt": "3", "n": 2, "seed": 0, "steps": 1, "guidance": None, "sampler": None, "objective": None}
    with torch.no_grad():
        drawn = task_of().predict(model, {}, {**given, "autoencoder": str(tmp_path)})
        assert drawn.pixels_NHWC.shape == (2, 64, 64, 3)
        with pytest.raises(ZooError, match="latents of 4 channels, no pixels; set autoencoder=FOLDER"):
            task_of().predict(model, {}, {**given, "autoencoder": None})


def test_a_model_without_a_condition() -> None:
    data, model = digits(), random_model(condition=None)
    task = task_of(sampler={"name": "diffusion/euler", "steps": 2})
    task.match(model, data, {})
    batch = {key: torch.stack([data.split("val")[n][key] for n in range(4)]) for key in ("image", "label", "index")}
    task.loss(model.train(), batch).loss.backward()
    given = {"prompt": None, "n": 3, "seed": 0, "steps": None, "guidance": None, "sampler": None, "objective": None}
    with torch.no_grad():
        drawn = task.predict(model.eval(), data.preprocessing, {**given, "autoencoder": None})
        assert drawn.pixels_NHWC.shape == (3, 8, 8, 3) and drawn.prompts == ["", "", ""]
        assert task.assess(model, data, "test", None) == {}
        with pytest.raises(ZooError, match="knows no prompt"):
            task.predict(model, data.preprocessing, {**given, "autoencoder": None, "prompt": "3"})
