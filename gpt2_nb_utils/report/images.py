"""Pictures inside a page: as data URLs, and smaller where a page would grow too large.

It knows bytes and pixels. It deliberately does not know what a picture shows.
"""

from __future__ import annotations

import base64
import io

_WIDEST = {2: 1100, 3: 800}
SMALLEST = 3
"""The highest level of compression: 0 leaves a picture alone, 1 takes a palette, 2 and 3 also fewer pixels."""


def data_url(png: bytes, level: int = 0) -> str:
    """The picture as a `data:` URL, compressed as far as `level` allows (never larger than it was)."""
    return "data:image/png;base64," + base64.b64encode(compressed(png, level)).decode("ascii")


def compressed(png: bytes, level: int) -> bytes:
    """The PNG with a palette and fewer pixels, or itself when that is smaller or it cannot be read."""
    if level == 0:
        return png
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return png
    paper = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(paper, image).convert("RGB")
    widest = _WIDEST.get(min(level, SMALLEST), image.width)
    if image.width > widest:
        image = image.resize(
            (widest, max(1, round(image.height * widest / image.width))), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    image.quantize(colors=256 if level < SMALLEST else 64).save(buffer, format="PNG", optimize=True)
    return min(png, buffer.getvalue(), key=len)
