"""Every bundled tag loads and gives the numbers on its card, to three decimals, on every item of its test split."""

import os

import pytest
import torch

from zoo import hub, registry
from zoo.eval.card import read_results
from zoo.eval.data import data_section
from zoo.eval.evaluate import evaluate
from zoo.resources import package_dir
from zoo.spec import ZooError

BUNDLED = [
    name
    for name in registry.list_models(pretrained=True)
    if registry.find_model(name)[0].spec.pretrained[registry.split_tag(name)[1]].source.startswith("bundled:")
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BUNDLED)
def test_a_tag_gives_the_numbers_on_its_card(name):
    results = read_results(*registry.find_model(name))
    card = {r["metric"]: r["value"] for r in results}
    assert card, f"the card of {name} has no results; run: zoo eval {name} --update-card"
    predictor = hub.load(name)
    try:
        torch.set_num_threads(os.cpu_count() or 1)  # the longest test there is; the next one sets them back
        report = evaluate(predictor, data_section(name, {}), batch_size=64, quiet=True, rivals=False)
    except ZooError as error:
        if "is not there" not in str(error) and "cannot download" not in str(error):
            raise
        pytest.skip(f"its data are not here: {error}")
    sampled = {metric: card.pop(metric) for metric in predictor.task.sampled if metric in card}
    assert {metric: report.metrics[metric] for metric in card} == pytest.approx(card, abs=5e-4)
    if not any(r["settings"] for r in results):  # else the card has drawn more than is drawn here
        assert {metric: report.metrics[metric] for metric in sampled} == pytest.approx(sampled, rel=0.05)


def test_bundled_weights_stay_small():
    sizes = {}
    for name in BUNDLED:
        entry, tag = registry.find_model(name)
        folder = package_dir(entry.plugin.package) / entry.spec.pretrained[tag].source.removeprefix("bundled:")
        sizes[name] = sum(file.stat().st_size for file in folder.iterdir())
    assert all(size < 4e6 for size in sizes.values()), sizes
    assert sum(sizes.values()) < 40e6
