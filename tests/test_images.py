"""Pictures of every kind are read or refused, each with one clear line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.images import find_images, grid, read_image, read_images, write_image
from zoo.spec import ZooError

RED = (200, 30, 10)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def plain(path: Path, size: tuple[int, int] = (6, 4), colour: tuple[int, ...] = RED, mode: str = "RGB") -> Path:
    return save(path, Image.new(mode, size, colour))


def test_a_plain_picture_comes_as_it_is(tmp_path):
    values = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    picture = read_image(write_image(values, tmp_path / "a.png"))
    assert picture.notes == [] and picture.pixels_HWC.dtype == np.uint8
    assert np.array_equal(picture.pixels_HWC, values)
    assert np.array_equal(read_image(tmp_path / "a.png", (4, 6)).pixels_HWC, values), "no resampling at its own size"


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "HSV"])
def test_modes_without_a_word(tmp_path, mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert("RGB")
    path = tmp_path / ("a.tif" if mode in ("YCbCr", "LAB") else "a.png")
    if mode == "LAB":
        image = Image.new("LAB", (8, 8), (255, 128, 128))
    elif mode != "HSV":
        image = image.convert(mode)
    picture = read_image(save(path, image), 4)
    assert picture.pixels_HWC.shape == (4, 4, 3) and picture.notes == []
    assert picture.pixels_HWC.min() > 245


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (32, 32), RED).convert("CMYK"), quality=95)
    picture = read_image(path, 8)
    assert picture.notes == ["CMYK converted to RGB"]
    assert abs(picture.pixels_HWC.astype(int) - RED).max() < 12


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(ramp)))
    assert picture.notes == ["16-bit grey values scaled to 8 bits"]
    assert np.array_equal(picture.pixels_HWC[..., 0], np.round(ramp / 257).astype(np.uint8))


def test_real_values(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert read_image(save(tmp_path / "a.tif", Image.fromarray(ramp))).notes == ["real grey values scaled to 8 bits"]
    wide = read_image(save(tmp_path / "b.tif", Image.fromarray(ramp * 7 - 2)))
    assert wide.notes == ["grey values scaled from smallest to largest"]
    assert wide.pixels_HWC.min() == 0 and wide.pixels_HWC.max() == 255
    ramp[0, 0] = np.nan
    with pytest.raises(ZooError, match=r"is damaged \(it has values that are no numbers\)"):
        read_image(save(tmp_path / "c.tif", Image.fromarray(ramp)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_a_background(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert("RGBA" if mode == "P" else mode)
    if mode == "P":
        image = image.quantize(4)
    path = save(tmp_path / "a.png", image)
    white, black = read_image(path), read_image(path, background=(0, 0, 0))
    assert white.notes == ["transparency laid on white"] and black.notes == ["transparency laid on black"]
    assert white.pixels_HWC.min() == 255 and black.pixels_HWC.max() == 0


def test_an_opaque_alpha_channel_is_no_news(tmp_path):
    assert read_image(plain(tmp_path / "a.png", colour=(*RED, 255), mode="RGBA")).notes == []


def test_an_edge_does_not_take_the_colour_below_transparency(tmp_path):
    values = np.zeros((64, 64, 4), np.uint8)
    values[:, :33] = (255, 255, 255, 255)  # white beside transparent black: all white on white
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(values)), 8)
    assert picture.pixels_HWC.min() >= 254


def test_a_film_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    picture = read_image(path)
    assert picture.notes == ["the first frame of several"] and tuple(picture.pixels_HWC[0, 0]) == (255, 0, 0)


def test_a_camera_says_which_side_is_up(tmp_path):
    values = np.zeros((8, 16, 3), np.uint8)
    values[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    picture = read_image(save(tmp_path / "a.png", Image.fromarray(values), exif=exif))
    assert picture.notes == ["turned as its camera says"] and picture.pixels_HWC.shape == (16, 8, 3)
    assert picture.pixels_HWC[:8].min() == 255 and picture.pixels_HWC[8:].max() == 0


def test_fits(tmp_path):
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = 255
    path = write_image(values, tmp_path / "a.png")
    assert read_image(path, 10, "crop").pixels_HWC.min() == 255
    padded = read_image(path, 30, "pad", background=RED).pixels_HWC
    assert tuple(padded[0, 0]) == RED and tuple(padded[15, 0]) == (0, 0, 0) and tuple(padded[15, 15]) == (255,) * 3
    stretched = read_image(path, (30, 30), "stretch").pixels_HWC
    assert stretched[:, 0].max() == 0 and stretched[:, 15].min() == 255
    assert read_image(path, (5, 60), "pad").pixels_HWC.shape == (5, 60, 3)


@pytest.mark.parametrize(("content", "cause"), [(b"", "is empty"), (b"no picture", "is no picture")])
def test_what_is_no_picture(tmp_path, content, cause):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ZooError, match=cause):
        read_image(tmp_path / "a.png")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ZooError, match="does not exist"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ZooError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_files_that_are_cut_off_or_overwritten(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    content = buffer.getvalue()
    for end in (len(content) // 2, len(content) // 10, 20):
        (tmp_path / "a").write_bytes(content[:end])
        with pytest.raises(ZooError, match=r"is damaged|is no picture"):
            read_image(tmp_path / "a", 16)
    for seed in range(40):  # any bytes may be wrong: a picture or a clear refusal, nothing else
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(damaged), 400), 8):
            damaged[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            read_image(tmp_path / "a", 16)
        except ZooError as error:
            assert str(error).count("\n") == 0


def test_a_huge_jpeg_is_never_decoded_whole(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (10_000, 5_000), RED), quality=80)
    decoded = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, **k: (decoded.append(self.size), resize(self, *a, **k))[1]
    )
    picture = read_image(path, 32)
    assert picture.pixels_HWC.shape == (32, 32, 3) and abs(picture.pixels_HWC.astype(int) - RED).max() < 6
    assert decoded[0] == (1250, 625), "an eighth of each side"


def test_a_huge_png_is_read_and_a_bomb_is_not(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("L", (10_000, 5_000), 77), compress_level=1)
    assert np.array_equal(np.unique(read_image(path, 32).pixels_HWC), [77])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000_000)
    for limit in (40_000_000, 20_000_000):  # Pillow warns, and raises from twice the limit on
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ZooError, match=r"more than [24]0 megapixels"):
            read_image(path, 32)


def test_a_set_with_broken_pictures_is_read_and_they_are_told(tmp_path):
    paths = [plain(tmp_path / f"{n:03}.png") for n in range(20)]
    paths[3].write_bytes(b"")
    paths[7].write_bytes(paths[8].read_bytes()[:40])
    paths[9] = plain(tmp_path / "009.png", colour=(0, 0, 0, 9), mode="RGBA")
    read = read_images(paths, 4)
    assert read.pixels_NHWC.shape == (18, 4, 4, 3) and read.kept == [n for n in range(20) if n not in (3, 7)]
    assert read.notes[0] == "1 of 20 images: transparency laid on white"
    assert "2 of 20 images cannot be read and are left out" in read.notes[1]
    assert "003.png' is empty (0 bytes); '" in read.notes[1] and "007.png' is no picture" in read.notes[1]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ZooError, match=r"none of 20 images can be read; the first: image .* is empty"):
        read_images(paths, 4)


def test_pictures_of_a_folder(tmp_path):
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    for name in ("b.PNG", "a.png", "deep/c.png", "deep/.hidden/d.png", ".e.png"):
        plain(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.PNG", "c.png"]
    with pytest.raises(ZooError, match="holds no pictures"):
        find_images(_empty(tmp_path))
    with pytest.raises(ZooError, match="does not exist"):
        find_images(tmp_path / "nowhere")


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_grid():
    pixels = np.zeros((3, 2, 2, 3), np.uint8) + np.array([10, 20, 30], np.uint8)[:, None, None, None]
    sheet = grid(pixels, columns=2, gap=1, scale=2)
    assert sheet.shape == (11, 11, 3)
    assert sheet[1, 1, 0] == 10 and sheet[1, 6, 0] == 20 and sheet[6, 1, 0] == 30 and sheet[6, 6, 0] == 255
    assert sheet[0].min() == 255 and sheet[5].min() == 255
