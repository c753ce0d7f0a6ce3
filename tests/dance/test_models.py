"""The tokeniser, the state space, the decoder and generation: each equal to its reference; nobody hears the future."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo import create_model
from zoo.nn import Cache
from zoo.spec import ZooError
from zoo_dance.generate import dance
from zoo_dance.models.blocks import StreamBlock, WindowAttention
from zoo_dance.models.codec import Codec, CodecConfig
from zoo_dance.models.mamba import Mamba, selective_scan
from zoo_dance.models.quantisers import FSQ, VQ, code_of, digits_of


def tiny(**overrides: Any) -> Any:
    torch.manual_seed(0)
    return create_model("dance/megadance_tiny", **overrides).eval()


def seed_model(**overrides: Any) -> Any:
    return tiny(start_token=False, **overrides)


def songs(batch: int, tokens: int, model: Any, seed: int = 0) -> Tensor:
    width = model.config.music_width * model.config.music_frames
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


# -- quantisers and codec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[8, 6, 5], [7, 5, 5, 5, 5], [2, 3], [4]])
def test_every_code_of_fsq_can_be_had_and_comes_back(levels: list[int]) -> None:
    fsq = FSQ(FSQ.Config(levels), 8)
    digits = digits_of(torch.arange(fsq.size), levels)
    assert torch.equal(code_of(digits, levels), torch.arange(fsq.size))
    # Numbers that lie at a level are rounded to it, whatever comes before.
    bounded = fsq.bound(torch.randn(5000, len(levels)) * 3)
    found = bounded.round() + fsq.level_N // 2
    for n, level in enumerate(levels):
        assert found[:, n].unique().tolist() == list(range(level))
    assert fsq.decode(digits).shape == (fsq.size, 8)
    out = fsq(torch.randn(4, 3, 8))
    torch.testing.assert_close(out.z_BTC, fsq.decode(out.digits_BTN))


def test_fsq_passes_the_gradient_of_its_bound() -> None:
    fsq = FSQ(FSQ.Config([7, 5]), 4)
    x = torch.randn(6, 4, requires_grad=True)
    fsq(x).z_BTC.sum().backward()
    y = x.detach().clone().requires_grad_()
    straight = fsq.project_out(fsq.bound(fsq.project_in(y)) / (fsq.level_N // 2))
    straight.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_vq_takes_the_nearest_and_teaches_it() -> None:
    vq = VQ(VQ.Config(size=5), 3)
    with torch.no_grad():
        vq.book_KC.copy_(torch.arange(15.0).view(5, 3))
    x = torch.tensor([[6.4, 7.2, 8.1], [0.1, 0.9, 1.7]], requires_grad=True)
    out = vq(x)
    assert out.digits_BTN[:, 0].tolist() == [2, 0]
    torch.testing.assert_close(out.z_BTC, vq.decode(out.digits_BTN))
    out.loss_B.sum().backward()
    assert (vq.book_KC.grad.abs().sum(1) > 0).tolist() == [True, False, True, False, False]  # type: ignore[union-attr]
    gap = (x - vq.book_KC[[2, 0]]).detach()
    torch.testing.assert_close(x.grad, 0.25 * 2 * gap / gap.shape[1])


def test_the_codec_looks_back_only_and_no_further_than_it_says() -> None:
    torch.manual_seed(0)
    codec = Codec(CodecConfig(width=8, downs=2, quantiser={"name": "dance/fsq", "levels": [5, 5]})).eval()
    tokens = 20
    digits = tuple(torch.randint(0, 5, (1, tokens, 2)) for _ in range(2))
    whole = codec.decode(digits)
    for place in (0, 7, 19):
        other = tuple((each.clone()) for each in digits)
        for each in other:
            each[:, place] = (each[:, place] + 2) % 5
        changed = (codec.decode(other) != whole).any(-1)[0].nonzero()[:, 0]
        assert changed.min() >= place * 4 and changed.max() < (place + codec.reach + 1) * 4
    assert codec(torch.randn(2, 24, 147)).motion_BTC.shape == (2, 24, 147)
    with pytest.raises(ZooError, match="no multiple of 4"):
        codec(torch.randn(1, 23, 147))


@pytest.mark.parametrize("causal", [True, False])
def test_long_dances_are_decoded_in_blocks(causal: bool) -> None:
    model = tiny(**{"codec.causal": causal, "codec.width": 8})
    digits = tuple(
        torch.stack([torch.randint(0, level, (1, 600)) for level in model.codec.levels], -1) for _ in range(2)
    )
    torch.testing.assert_close(model.decode(digits), model.codec.decode(digits), rtol=0, atol=1e-5)


# -- the state space -------------------------------------------------------------------------------------------------


def scan_by_hand(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    batch, length, inner = u.shape
    y = torch.zeros_like(u)
    for b in range(batch):
        for i in range(inner):
            h = torch.zeros(A.shape[1], dtype=u.dtype)
            for t in range(length):
                h = torch.exp(step[b, t, i] * A[i]) * h + step[b, t, i] * B[b, t] * u[b, t, i]
                y[b, t, i] = (C[b, t] * h).sum()
    return y


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_scan_is_the_recurrence_with_all_gradients(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    made = [(2, 7, 3), (2, 7, 3), (3, 4), (2, 7, 4), (2, 7, 4)]
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in made]
    parts[1], parts[2] = parts[1].exp(), -parts[2].exp()
    ours, theirs = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    y, last = selective_scan(*ours, chunk=chunk)
    reference = scan_by_hand(*theirs)
    torch.testing.assert_close(y, reference)
    y.square().sum().backward()
    reference.square().sum().backward()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    half, state = selective_scan(*(p[:, :4] if p.dim() == 3 else p for p in parts))
    rest, end = selective_scan(*(p[:, 4:] if p.dim() == 3 else p for p in parts), state_BIN=state)
    torch.testing.assert_close(torch.cat([half, rest], 1), y)
    torch.testing.assert_close(end, last)


def test_mamba_goes_on_where_it_stopped() -> None:
    mamba = Mamba(Mamba.Config(d_state=4), 8).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    whole, _ = mamba(x)
    state, parts = None, []
    for low, high in ((0, 1), (1, 2), (2, 6), (6, 9)):
        y, state = mamba(x[:, low:high], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_attention_is_the_tiled_window() -> None:
    model = tiny()
    attention = next(m for m in model.modules() if isinstance(m, WindowAttention))
    window, streams, times = attention.config.window, 3, 20
    x = torch.randn(1, times * streams, model.config.stack.hidden_size)
    from zoo.moe import RouteContext
    from zoo.nn.span import span_of

    y, _ = attention(x, span_of(x), RouteContext())
    q, k, v = (p(x).unflatten(-1, (-1, attention.head)).transpose(1, 2) for p in attention._projections())
    time = torch.arange(times)
    one = (time[:, None] >= time) & (time[:, None] - time < window)
    # The reference lays the streams one after the other; ours go time by time.
    tiled = one.repeat(streams, streams)
    order = torch.arange(times * streams).view(streams, times).T.flatten()
    scores = (q @ k.mT / attention.head**0.5)[:, :, order.argsort()][..., order.argsort()]
    weight = scores.masked_fill(~tiled, -torch.inf).softmax(-1)
    wanted = (weight @ v[:, :, order.argsort()])[:, :, order].transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, attention.o_proj(wanted), rtol=0, atol=1e-5)


# -- the decoder -----------------------------------------------------------------------------------------------------


def test_decoding_with_a_cache_is_decoding_without() -> None:
    model = tiny(max_length=40)
    tokens = 30
    digits = tuple(torch.stack([torch.randint(0, n, (2, tokens)) for n in model.levels], -1) for _ in range(2))
    music, genre = songs(2, tokens, model), torch.tensor([1, 5])
    with torch.no_grad():
        whole, _ = model.foretell(digits, music, genre)
        cache, parts = Cache(), []
        for low, high in ((0, 1), (1, 2), (2, 10), (10, 30)):
            before = tuple(each[:, max(0, low - 1) : high - 1] for each in digits)
            parts.append(model.next(before, music[:, low:high], genre, cache=cache)[0])
    for s in (0, 1):
        torch.testing.assert_close(torch.cat([part[s] for part in parts], 1), whole[s], rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", [tiny, seed_model])
def test_dances_are_the_same_with_and_without_a_cache(made: Any) -> None:
    model = made()
    music, tokens = songs(2, 37, model), 37
    genre = torch.tensor([[2], [6]]).expand(-1, tokens).clone()
    genre[:, 20:] = 4
    first = tuple(torch.zeros(2, 1, len(model.levels), dtype=torch.long) for _ in range(2))
    both = [
        dance(model, music, genre, generator=torch.Generator().manual_seed(3), first=first, cached=cached)
        for cached in (True, False)
    ]
    for one, two in zip(*both, strict=True):
        assert one.shape == (2, tokens, 3) and torch.equal(one, two)
        assert all(int(one[..., n].max()) < level for n, level in enumerate(model.levels))


@pytest.mark.parametrize("made", [tiny, seed_model])
def test_music_after_a_moment_changes_nothing_before(made: Any) -> None:
    model = made()
    for name, parameter in model.named_parameters():  # an untrained model hardly hears
        if parameter.dim() > 1 and "A_log" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tokens, moment = 37, 22
    music = songs(1, tokens, model)
    other = music.clone()
    other[:, moment:] = songs(1, tokens, model, seed=9)[:, moment:]
    genre = torch.full((1, tokens), 3)
    first = tuple(torch.ones(1, 1, len(model.levels), dtype=torch.long) for _ in range(2))
    options = {"temperature": 0.0, "first": first}
    one, two = dance(model, music, genre, **options), dance(model, other, genre, **options)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a[:, :moment], b[:, :moment]) and not torch.equal(a, b)
    frames = moment * model.codec.stride
    with torch.no_grad():
        torch.testing.assert_close(model.decode(one)[:, :frames], model.decode(two)[:, :frames], rtol=0, atol=0)


def test_only_the_genre_that_was_asked_for_is_run() -> None:
    model = tiny()
    counts: dict[tuple[int, int], int] = {}
    for n, layer in enumerate(model.stack.layers):
        for e, block in enumerate(getattr(layer, "blocks", ())):
            block.register_forward_hook(lambda *_, key=(n, e): counts.update({key: counts.get(key, 0) + 1}))
    tokens = 9
    dance(model, songs(1, tokens, model), torch.full((1, tokens), 5))
    assert counts == {(1, 5): tokens, (3, 5): tokens}
    counts.clear()
    genre = torch.tensor([[5] * 4 + [2] * 5])
    dance(model, songs(1, tokens, model), genre)
    assert counts == {(1, 5): 4, (3, 5): 4, (1, 2): 5, (3, 2): 5}


def test_a_genre_has_weights_of_its_own_and_the_label_matters() -> None:
    model = tiny()
    music, genre = songs(1, 12, model), torch.tensor([0])
    digits = tuple(torch.zeros(1, 12, 3, dtype=torch.long) for _ in range(2))
    with torch.no_grad():
        before = model.foretell(digits, music, genre)[0][0]
        for layer in model.stack.layers[1::2]:
            for parameter in layer.blocks[3].parameters():
                parameter.add_(1.0)
        assert torch.equal(model.foretell(digits, music, genre)[0][0], before)
        assert not torch.allclose(model.foretell(digits, music, torch.tensor([3]))[0][0], before)


def test_a_long_song_keeps_a_window_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny(), []
    before = Cache.__init__
    caches: list[Cache] = []

    def remember(self: Cache) -> None:
        before(self)
        caches.append(self)

    monkeypatch.setattr(Cache, "__init__", remember)
    tokens = 150
    dance(
        model,
        songs(1, tokens, model),
        torch.zeros(1, tokens, dtype=torch.long),
        tick=lambda: sizes.append(sum(t.numel() for kept in caches[-1].kept.values() for t in kept)),
    )
    assert len(sizes) == tokens and max(sizes[20:]) == max(sizes[:40])


def test_one_value_a_code_as_in_the_paper() -> None:
    model = tiny(factored=False)
    assert model.levels == [240]
    out = model(**model.dummy_inputs(2))
    assert out.logits[0].shape[-1] == 240 and out.digits[0].shape[-1] == 1
    again = model.codec_digits(out.digits[0])
    assert torch.equal(model.own_digits(again), out.digits[0])


def test_every_genre_has_a_block() -> None:
    model = tiny(genres=11)
    assert [len(layer.blocks) for layer in model.stack.layers[1::2]] == [11, 11]
    pattern = [{**item} for item in model.config.stack.pattern]
    pattern[1] = {"wiring": {**pattern[1]["wiring"], "count": 3}}
    with pytest.raises(ZooError, match="11 genres do not have 3 blocks"):
        tiny(genres=11, **{"stack.pattern": pattern})


def test_what_cannot_be_danced_is_refused() -> None:
    with pytest.raises(ZooError, match="give the first token"):
        dance(seed_model(), songs(1, 4, tiny()), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ZooError, match="shorter than a token"):
        dance(tiny(), songs(1, 0, tiny()), torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ZooError, match="levels"):
        create_model("dance/fsq_tiny", **{"quantiser.levels": [1]})


def test_dropout_is_for_training_alone() -> None:
    model = tiny(**{"stack.mixer.dropout": 0.5, "stack.wiring.dropout": 0.5})
    inputs = model.dummy_inputs(2)
    assert torch.equal(model(**inputs).logits[0], model(**inputs).logits[0])
    model.train()
    assert not torch.equal(model(**inputs).logits[0], model(**inputs).logits[0])
    assert any(isinstance(m, StreamBlock) for m in model.modules()) and isinstance(model, nn.Module)
