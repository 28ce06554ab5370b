"""Addresses of what the page shows: a file that its server gives away, a picture in the address."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROUTE = "gradio_api/file="


def of_file(file: Path) -> str:
    """Return where the page's server gives a file away."""
    return html.escape(ROUTE + quote(str(file)))


def of_picture(picture: Any) -> str:
    """Return a picture, PIL's or uint8 [h, w, 3], as an address that holds it, a small WebP."""
    from PIL import Image

    file = io.BytesIO()
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    whole.save(file, "webp", quality=85, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
