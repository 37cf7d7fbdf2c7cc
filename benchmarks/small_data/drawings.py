"""`drawings`: names of emoji drawn by several artists, for retrieval.

Two artists' drawings are trained on, a third's are the test, and the names are the same: what has
to be learned is what a thing looks like, not whose hand it is. Validation is of train's artists:
for one name in twelve, one of the two drawings is held out.

The drawings and their names come from npm packages, which are unpacked below `packages` by

    npm install --ignore-scripts --prefix PACKAGES openmoji @iconify-json/openmoji \\
        @iconify-json/noto @iconify-json/fluent-emoji-flat

(OpenMoji: CC BY-SA 4.0; Noto: Apache 2.0; Fluent: MIT.) They are vector drawings; `resvg-py`
turns them into pixels. Skin tones and flags are left out, and names that not all have drawn.
"""

import functools
import io
import json
import zlib
from pathlib import Path

from PIL import Image

from .pictures import Scene

ARTISTS = ("openmoji", "noto", "fluent-emoji-flat")
SIZES = {"train": None, "validation": None, "test": None}  # all that there are
PIXELS = 64


def scenes(split, rng, *, packages, test=ARTISTS[2]):
    """The split's drawings, in random order.

    Args:
      packages: folder with `node_modules`.
      test: the artist of the test split, of `ARTISTS`; the two others are trained on.
    """
    things = drawn_by_all(Path(packages) / "node_modules")
    wanted = [
        (name, artist, svg)
        for name, by_artist in things.items()
        for artist, svg in by_artist.items()
        if split == split_of(name, artist, test)
    ]
    for index in rng.permutation(len(wanted)):
        name, artist, svg = wanted[index]
        yield Scene(picture(svg), dict(name=name, artist=artist), [dict(caption=name)])


def split_of(name, artist, test):
    """Which split an artist's drawing of `name` belongs to."""
    if artist == test:
        return "test"
    digest = zlib.crc32(name.encode())
    others = [other for other in ARTISTS if other != test]
    held_out = digest % 12 == 0 and artist == others[digest // 12 % 2]
    return "validation" if held_out else "train"


@functools.cache
def drawn_by_all(modules):
    """{name: {artist: SVG}} of the drawings that every artist has."""
    table = json.loads((modules / "openmoji/data/openmoji.json").read_text(encoding="utf-8"))
    names = {
        plain(row["hexcode"]): row["annotation"]
        for row in table
        if not row["skintone"] and row["group"] != "flags" and "extras" not in row["group"]
    }
    drawings = {artist: read_icons(modules / "@iconify-json" / artist) for artist in ARTISTS}
    common = set(names).intersection(*drawings.values())
    return {
        names[code]: {artist: drawings[artist][code] for artist in ARTISTS}
        for code in sorted(common)
    }


def plain(code):
    """A code point sequence as `1F600-200D-…`, without the variation selector."""
    return code.upper().replace("-FE0F", "")


def read_icons(folder):
    """{code points: SVG} of a package in Iconify's format."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    characters = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    drawings = {}
    for code, name in characters.items():
        while name in icons.get("aliases", {}):
            name = icons["aliases"][name]["parent"]
        icon = icons["icons"][name]
        box = [
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", icons.get("width", 16)),
            icon.get("height", icons.get("height", 16)),
        ]
        drawings[plain(code)] = (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
        )
    return drawings


def picture(svg):
    """An SVG drawing on white, `PIXELS` square."""
    import resvg_py  # of the extra `benchmarks`

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", (PIXELS, PIXELS), "white")
    canvas.alpha_composite(drawing, tuple((PIXELS - side) // 2 for side in drawing.size))
    return canvas.convert("RGB")
