"""The plugin is found, and what it trains can be loaded and asked."""

import wave
from pathlib import Path

import numpy as np

import zoo
from zoo.train.recipe import read_recipe
from zoo.train.run import train


def test_it_is_found() -> None:
    assert "birdsong" in zoo.list_plugins(), zoo.broken_plugins()
    assert zoo.list_models("birdsong/*") == ["birdsong/patch_moe"]


def test_it_trains_and_predicts(tmp_path: Path) -> None:
    run = train(read_recipe("birdsong/patch_moe"), tmp_path / "run", fast_dev_run=True, quiet=True)
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((8000 * np.sin(np.arange(1024))).astype("<i2").tobytes())
    probability = zoo.load(run).predict(input=tmp_path / "tone.wav")
    assert set(probability) == {"rising", "falling", "trill"}
    assert abs(sum(probability.values()) - 1) < 1e-5
