"""Pictures from files, whatever is in them, and pictures into files. Imports Pillow only when it is used.

Shapes: N pictures, H height, W width; three channels of 8 bits, red, green and blue.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.spec import ZooError

Pixels = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NAMED = 5
"""How many of the pictures that are left out are told by name."""


class Picture(NamedTuple):
    """``pixels_HWC`` in 8 bits, and ``notes``: what was converted on the way, empty for a plain RGB file."""

    pixels_HWC: Pixels
    notes: list[str]


class Pictures(NamedTuple):
    """``pixels_NHWC`` of one size; ``kept``, the places of the paths that could be read; ``notes`` for the user."""

    pixels_NHWC: Pixels
    kept: list[int]
    notes: list[str]


def read_image(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """A picture of any mode as 8-bit RGB: transparency is laid on ``background``, deep grey values are scaled down,
    a film gives its first frame, and a camera's orientation is followed.

    Args:
        size: side of a square, or (height, width); by default the file's own. A large JPEG is decoded no larger than
            that takes; of other files up to 89 megapixels are decoded (4 bytes each), then made smaller at once.
        fit: the middle of it, all of it on ``background``, or all of it out of shape.

    Raises:
        ZooError: a file that is missing, empty, no picture, cut off, or larger than 89 megapixels.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a picture" if path.is_dir() else "does not exist"
        raise ZooError(f"image '{path}' {what}; give the path of a PNG, JPEG or WebP file")
    if path.stat().st_size == 0:
        raise ZooError(f"image '{path}' is empty (0 bytes); replace or remove it")
    from PIL import Image, UnidentifiedImageError

    wanted = (size, size) if isinstance(size, int) else size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which do not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _read(file, wanted, fit, background)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ZooError(f"image '{path}' has more than {limit} megapixels; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ZooError(f"image '{path}' is no picture that can be read; replace or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # Pillow raises all of these
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ZooError(f"image '{path}' is damaged ({reason}); replace or remove it") from error


def read_images(
    paths: Sequence[str | Path],
    size: int | tuple[int, int],
    fit: Literal["crop", "pad", "stretch"] = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Pictures:
    """All pictures that can be read, in one array; the others are left out and told in ``notes``.

    Raises:
        ZooError: not one of them can be read.
    """
    rows: list[Pixels] = []
    kept: list[int] = []
    broken: list[ZooError] = []
    converted: dict[str, int] = {}
    for place, path in enumerate(paths):
        try:
            picture = read_image(path, size, fit, background)
        except ZooError as error:
            broken.append(error)
            continue
        rows.append(picture.pixels_HWC)
        kept.append(place)
        for note in picture.notes:
            converted[note] = converted.get(note, 0) + 1
    if not rows:
        cause = f"; the first: {broken[0]}" if broken else ""
        raise ZooError(f"none of {len(paths)} images can be read{cause}")
    notes = [f"{count:,} of {len(paths):,} images: {note}" for note, count in converted.items()]
    if broken:
        names = "; ".join(str(error).rpartition("; ")[0].removeprefix("image ") for error in broken[:NAMED])
        more = f"; and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
        notes.append(f"{len(broken):,} of {len(paths):,} images cannot be read and are left out: {names}{more}")
    return Pictures(np.stack(rows), kept, notes)


def find_images(folder: str | Path) -> list[Path]:
    """The picture files below a folder, by name; hidden ones are passed over. Raises `ZooError` when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ZooError(f"folder '{folder}' does not exist; give a folder with pictures")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ZooError(f"folder '{folder}' holds no pictures ({', '.join(SUFFIXES)}); put some there")
    return found


def write_image(pixels_HWC: Pixels, path: Path) -> Path:
    """Write a PNG (or what the suffix says) of 8-bit RGB."""
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(path)
    return path


def grid(pixels_NHWC: Pixels, columns: int, gap: int = 2, scale: int = 1) -> Pixels:
    """The pictures side by side, row after row, ``gap`` white pixels between them; each pixel ``scale`` times as wide.

    Returns:
        (rows * (scale H + gap) + gap, columns * (scale W + gap) + gap, 3).
    """
    count, height, width, _ = pixels_NHWC.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    height, width = height * scale + gap, width * scale + gap
    sheet = np.full((rows * height + gap, columns * width + gap, 3), 255, np.uint8)
    for place, pixels_HWC in enumerate(pixels_NHWC):
        top, left = gap + place // columns * height, gap + place % columns * width
        large = pixels_HWC.repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height - gap, left : left + width - gap] = large
    return sheet


def _read(file: Any, size: tuple[int, int] | None, fit: str, background: tuple[int, int, int]) -> Picture:
    from PIL import Image, ImageOps

    notes = []
    if getattr(file, "n_frames", 1) > 1:
        notes.append("the first frame of several")
    if file.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    if size is not None:
        side = 2 * max(size)  # twice as fine as it will be, so that the resampling still has something to do
        file.draft(None if file.mode == "CMYK" else "RGB", (side, side))
    orientation = file.getexif().get(0x0112, 1)  # its tag in TIFF and Exif
    image: Image.Image = file
    image.load()
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, notes)
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if orientation not in (0, 1):
        image = ImageOps.exif_transpose(image)
        notes.append("turned as its camera says")
    if size is not None:
        image = _fit(image, size, fit)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:  # type: ignore[index]
            notes.append(f"transparency laid on {_name(background)}")
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    if size is not None and image.size != (size[1], size[0]):  # fit: pad
        sheet = Image.new("RGB", (size[1], size[0]), background)
        sheet.paste(image, ((size[1] - image.width) // 2, (size[0] - image.height) // 2))
        image = sheet
    return Picture(np.array(image, np.uint8), notes)


def _fit(image: Any, size: tuple[int, int], fit: str) -> Any:
    """Resample: to the size itself or, padded later, to the largest that lies within."""
    from PIL import Image

    height, width = size
    box = (0.0, 0.0, float(image.width), float(image.height))
    shape = (width, height)
    if fit == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
    elif fit == "pad":
        scale = max(image.width / width, image.height / height)
        shape = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    if box == (0, 0, *shape):
        return image
    if image.mode == "1":
        image = image.convert("L")
    # The gap lets Pillow average whole blocks of pixels first: fast, and no copy of a large picture.
    return image.resize(shape, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _to_eight_bits(image: Any, notes: list[str]) -> Any:
    """Grey values of more than 8 bits: 0..65535 of whole numbers, 0..1 of real ones, else from smallest to largest."""
    from PIL import Image

    values_HW = np.asarray(image)
    least, most = float(values_HW.min()), float(values_HW.max())
    if not np.isfinite([least, most]).all():
        raise ValueError("it has values that are no numbers")
    low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if least < low or most > high:
        low, high = least, most
        notes.append("grey values scaled from smallest to largest")
    else:
        notes.append(f"{'real' if image.mode == 'F' else '16-bit'} grey values scaled to 8 bits")
    grey_HW = np.empty(values_HW.shape, np.uint8)
    for top in range(0, len(values_HW), 256):  # in pieces: a whole picture in fp32 would be large
        rows = slice(top, top + 256)
        scaled = (values_HW[rows].astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        grey_HW[rows] = np.round(scaled)
    return Image.fromarray(grey_HW)


def _name(colour: tuple[int, int, int]) -> str:
    return {(255, 255, 255): "white", (0, 0, 0): "black"}.get(colour, str(colour))
