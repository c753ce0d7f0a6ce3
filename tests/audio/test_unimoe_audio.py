"""The model: routing as the card says, cached as uncached, ends channel by channel, specialists into one mixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo import config as zc
from zoo import create_model
from zoo.moe import MoE, MoEConfig, RouteContext, give
from zoo.spec import ZooError
from zoo_audio.generation import generate, null_experts
from zoo_audio.merging import MergeSpecialists

BANKS = [{"name": "swiglu", "count": 4, "intermediate_size": 8}, {"name": "null", "count": 1}]


def mixture(p: float = 0.7, shares: str = "softmax", shared: int = 2) -> MoE:
    weigher = {"name": "audio/masked_joint", "num_shared": shared, "shares": shares}
    router = {"name": "composed", "selector": {"name": "top_p", "p": p}, "weigher": weigher}
    side = {"name": "audio/side_by_side", "count": shared, "intermediate_size": 8}
    experts = {"name": "mixed", "banks": BANKS}
    moe = MoE(zc.make(MoEConfig, num_experts=5, router=router, experts=experts, shared=side), 16)
    moe.reset_parameters(0.5)
    return moe.eval()


def tiny(**overrides: Any) -> Any:
    return create_model("audio/unimoe_audio_tiny", **{"stack.num_layers": 2, **overrides}).eval()


# -- routing ---------------------------------------------------------------------------------------------------------


def test_p_of_one_takes_all_and_p_of_nought_one():
    x = torch.randn(2, 6, 16)
    assert mixture(1.0).route(x, RouteContext()).used_TK.all()
    out = mixture(0.0).route(x, RouteContext())
    assert (out.used_TK.sum(1) == 1).all() and torch.equal(out.index_TK[:, 0], out.logits_TE.argmax(1))


def test_weights_of_a_token_by_hand():
    moe = mixture()
    moe.router.scorer.weight.data = torch.zeros(5, 16)
    moe.router.scorer.weight.data[:, 0] = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])  # the last is the null expert
    moe.router.weigher.weight.data = torch.zeros(2, 16)
    moe.router.weigher.weight.data[:, 0] = torch.tensor([0.5, -0.5])
    x = torch.randn(1, 1, 16)
    x[..., 0] = 1
    y, out = moe(x, RouteContext())
    # softmax 0.46 0.17 0.06 0.02 0.28: the best and the null expert reach 0.7
    assert out.index_TK[0, out.used_TK[0]].tolist() == [0, 4]
    joint = torch.tensor([2.0, 1.5, 0.5, -0.5]).softmax(0)
    torch.testing.assert_close(out.weight_TK[0, :2], torch.tensor([2.0, 1.5]).softmax(0) * joint[:2].sum())
    torch.testing.assert_close(out.shared_weight[0], joint[2:])
    # The null expert keeps its part: all weights sum to 1, and what is computed to less.
    torch.testing.assert_close(out.weight_TK.sum() + out.shared_weight.sum(), torch.tensor(1.0))
    bank, side = moe.experts.banks[0], moe.shared
    gate, up = (bank.gate_up_proj[0] @ x[0, 0]).chunk(2)
    wanted = out.weight_TK[0, 0] * (bank.down_proj[0] @ (F.silu(gate) * up))
    for s in range(2):
        inner = F.silu(side.gate_proj[s] @ x[0, 0]) * (side.up_proj[s] @ x[0, 0])
        wanted = wanted + out.shared_weight[0, s] * (side.down_proj[s] @ inner)
    torch.testing.assert_close(y[0, 0], wanted)


def test_published_shares_are_nearly_equal_among_the_chosen():
    moe = mixture(1.0, "winner")
    out = moe.route(torch.randn(1, 50, 16), RouteContext())
    routed = 1 - out.shared_weight.sum(1)
    torch.testing.assert_close(out.weight_TK.sum(1), routed, rtol=0, atol=1e-5)
    share = out.weight_TK / routed[:, None]
    assert (share[:, :1] / share - 1).abs().median() < 0.01
    close = torch.tensor([[1.0, 0.99, -3.0, -3.0, -3.0]])  # within 2% of the best: they share by softmax
    first = moe.router.weigher._winners(close, close.argsort(-1, descending=True))[0, 0]
    torch.testing.assert_close(first, torch.tensor([1.0, 0.99]).softmax(0)[0])


def test_a_router_that_weighs_another_number_of_shared_experts_is_refused():
    moe = mixture()
    moe.router.weigher.weight.data = torch.zeros(3, 16)
    with pytest.raises(ZooError, match="weighs 3 shared experts, the layer has 2"):
        moe(torch.randn(1, 2, 16), RouteContext())


def test_null_experts_are_counted():
    assert null_experts(tiny()) == 1 and null_experts(create_model("audio/unimoe_audio_dense")) == 0


# -- decoding --------------------------------------------------------------------------------------------------------


def test_prompts_of_other_lengths_do_not_change_what_is_said():
    model = tiny()
    text, codes = torch.randint(64, (1, 4)), torch.randint(259, (1, 7, 4))
    padded, valid = F.pad(text, (3, 0)), torch.arange(14)[None] >= 3
    one, other = model(padded, codes, valid).logits_BSCV, model(text, codes).logits_BSCV
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_cached_equals_uncached():
    model = tiny()
    text, valid = torch.randint(64, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    valid[1, :2] = False
    draws = [
        generate(model, text, valid, max_frames=9, generator=torch.Generator().manual_seed(1), use_cache=use)
        for use in (True, False)
    ]
    for one, other in zip(draws[0].codes, draws[1].codes, strict=True):
        assert len(one) and torch.equal(one, other)
    for one, other in zip(draws[0].experts, draws[1].experts, strict=True):
        torch.testing.assert_close(one, other)


class Ends(torch.nn.Module):
    """Says code 7 until a sequence has said so many frames, then nothing but EOS, whatever the channel."""

    def __init__(self, frames: list[int], delay: list[int]) -> None:
        super().__init__()
        self.config = zc.make(type(tiny()).Config, delay=delay, codebook_size=16, stack={"num_layers": 0})
        self.frames, self.seen = torch.tensor(frames), []

    def forward(self, text, codes, valid, cache=None, last_only=True):
        self.seen.append(codes[:, -1])
        logits = torch.full((len(text), 1, len(self.config.delay), 19), -50.0)
        over = self.frames < len(self.seen)
        logits[~over, ..., 7] = 0
        logits[over, ..., 16] = 0
        return type("Out", (), {"logits_BSCV": logits, "routing": ()})


@pytest.mark.parametrize("delay", [[0, 1, 2, 3], [0, 3, 5]])
def test_channels_end_one_after_the_other(delay):
    model = Ends([4, 2], delay)
    drawn = generate(model, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool), max_frames=20)
    # Only the first channel may end a sequence: a later one that says EOS before its frames are out says a code.
    assert [len(codes) for codes in drawn.codes] == [4, 2] and drawn.ended == [True, True]
    assert (drawn.codes[0][:, 0] == 7).all() and (drawn.codes[0] < 16).all()
    steps = torch.stack(model.seen[1:], 1)
    for row, frames in enumerate((4, 2)):
        for channel, late in enumerate(delay):
            column = steps[row, :, channel].tolist()
            assert column[:late] == [18] * min(late, len(column))
            if frames + late < len(column):
                assert column[frames + late] == 16 and set(column[frames + late + 1 :]) <= {17}


def test_given_frames_stay():
    model, given = tiny(), torch.randint(89, (6, 4))
    prompt = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    drawn = generate(model, *prompt, max_frames=10, given_TC=given, codes_in_use=89)
    assert torch.equal(drawn.codes[0][:6], given) and drawn.codes[0].max() < 89
    with pytest.raises(ZooError, match="6 frames are given and at most 6 wanted"):
        generate(model, *prompt, max_frames=6, given_TC=given)
    with pytest.raises(ZooError, match="takes 1024 positions: ask for at most 1019 frames"):
        generate(model, *prompt, max_frames=2000)


def test_a_delay_that_does_not_start_with_nought_is_refused():
    with pytest.raises(ZooError, match="must start with 0"):
        tiny(delay=[1, 0, 2, 3])


# -- specialists -----------------------------------------------------------------------------------------------------


def test_a_merge_keeps_every_specialist_in_its_experts():
    models = {name: tiny() for name in ("initial", "speech", "music")}
    states = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in models.items()}
    merged = tiny()
    with torch.no_grad():
        MergeSpecialists(MergeSpecialists.Config(scale=1.0))(merged, states)
    x = torch.randn(1, 5, 128)
    for place, name in (((0, 1), "speech"), ((2, 3), "music")):
        for layer in range(2):
            one, other = models[name].stack.layers[layer].feed_forward, merged.stack.layers[layer].feed_forward
            give(one, [0, 1])
            give(other, place)
            torch.testing.assert_close(other(x, RouteContext())[0], one(x, RouteContext())[0])
    average = (states["speech"]["text.weight"] + states["music"]["text.weight"]) / 2
    torch.testing.assert_close(merged.text.weight, average)
    again = tiny()
    with torch.no_grad():
        MergeSpecialists(MergeSpecialists.Config())(again, states)
    down = "stack.layers.0.feed_forward.experts.banks.0.down_proj"
    torch.testing.assert_close(again.state_dict()[down], 2 * merged.state_dict()[down])  # two slices, each at half
    gate = "stack.layers.0.feed_forward.router.scorer.weight"
    assert torch.equal(merged.state_dict()[gate], states["initial"][gate])
    with pytest.raises(ZooError, match="3 specialists in 2 parts are 6 experts"):
        MergeSpecialists(MergeSpecialists.Config(stages=["speech", "music", "speech"]))(merged, states)
