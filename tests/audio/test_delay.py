"""The delay pattern by hand, and there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo_audio.delay import counted, delayed, restored

PUBLISHED = [0, *range(8, 19)]


def test_three_frames_by_hand():
    codes = torch.tensor([[[1, 2], [3, 4], [5, 6]]])
    # 8 codes: EOS 8, PAD 9, BOS 10. The second channel is two steps late.
    found = delayed(codes, torch.tensor([3]), [0, 2], 8)
    assert found[0].tolist() == [[1, 10], [3, 10], [5, 2], [8, 4], [9, 6], [9, 8]]
    assert counted(torch.tensor([3]), 6, [0, 2])[0].tolist() == [
        [True, False],
        [True, False],
        [True, True],
        [True, True],
        [False, True],
        [False, True],
    ]


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(0, 30), more=st.integers(0, 9), delay=st.sampled_from([[0], [0, 1, 2, 3], PUBLISHED]))
def test_there_and_back_is_the_identity(frames, more, delay):
    codes = torch.randint(16, (2, frames + more, len(delay)))
    steps = delayed(codes, torch.tensor([frames, frames + more]), delay, 16)
    assert torch.equal(restored(steps[0], delay, 16), codes[0, :frames])
    assert torch.equal(restored(steps[1], delay, 16), codes[1])


@pytest.mark.parametrize("delay", [[0, 1, 2, 3], PUBLISHED])
def test_every_channel_ends_once_and_is_padded_after(delay):
    steps = delayed(torch.zeros(1, 9, len(delay), dtype=torch.long), torch.tensor([5]), delay, 16)[0]
    for channel, late in enumerate(delay):
        column = steps[:, channel].tolist()
        assert column.index(16) == 5 + late and column.count(16) == 1
        assert set(column[:late]) <= {18} and set(column[5 + late + 1 :]) <= {17}


def test_what_is_cut_off_gives_its_whole_frames():
    steps = delayed(torch.arange(8).view(1, 4, 2), torch.tensor([4]), [0, 1], 16)[0, :3]
    assert restored(steps, [0, 1], 16).tolist() == [[0, 1], [2, 3]]
