"""Pictures with captions, as HTML that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment

from genkit.images import Pixels, to_picture

# The longer side of a picture on the page, in pixels.
SIDE, SMALL = 288, 192
CSS = """
.html-container:has(.figures) { padding: 0 !important; }
.figures { display: flex; flex-wrap: wrap; gap: 16px 20px; align-items: flex-start; }
.figures img { display: block; border-radius: 2px; }
.figures figure { margin: 0; min-width: 100px; }
@media (width >= 640px) {
  .figures.row { flex-wrap: nowrap; }
  .figures.row img { max-width: 100%; height: auto; min-height: 1px; }
}
.figures img.pixels { image-rendering: pixelated; }
.figures figcaption { font-size: 13px; line-height: 1.35; margin-top: 5px; }
.figures figcaption b { display: block; }
.note { font-size: 13px; margin: 0 0 10px; opacity: .8; }
.drop { min-height: 110px; }
"""
_HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
<div class="figures {{ "row" if figures | length <= 3 }}">
{% for figure, uri, width, height, pixels in figures %}
  <figure style="width: {{ width }}px">
    <img src="{{ uri }}" width="{{ width }}" height="{{ height }}" alt="{{ figure.title }}"
      class="{{ "pixels" if pixels }}">
    <figcaption><b>{{ figure.title }}</b>{{ figure.text }}</figcaption>
  </figure>
{% endfor %}
</div>
""")


class Figure(NamedTuple):
    """A picture uint8 `[H, W, C]`, C being 1, 3 or 4, with a title and a text below it."""

    picture: Pixels
    title: str
    text: str = ""


def html(figures: Sequence[Figure], notes: Sequence[str] = (), side: int = SIDE) -> str:
    """Figures side by side below some sentences; a picture's longer side is `side` pixels.

    Up to three shrink to stay in one row.
    """
    return _HTML.render(
        notes=notes,
        figures=[
            (figure, _uri(figure.picture), *_size(figure.picture, side)) for figure in figures
        ],
    )


def _size(picture: Pixels, side: int) -> tuple[int, int, bool]:
    """Width and height on the page, and whether the pixels are enlarged."""
    height, width = picture.shape[:2]
    times = side / max(height, width)
    return max(1, round(width * times)), max(1, round(height * times)), times > 1


def _uri(picture: Pixels) -> str:
    stream = io.BytesIO()
    to_picture(picture).save(stream, format="PNG", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
