"""`rendered_text`: a word or a code of random letters is written in the picture and has to be read.

The fonts are those that come with matplotlib and Pillow, so nothing is downloaded; bold, slanted
and serif faces among them.
"""

import functools
import string
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .pictures import Scene, background, choose

SIZES = {"train": 8000, "validation": 500, "test": 1000}
PIXELS = 64
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    None,  # Pillow's own
)
# No two are anagrams, and many share letters.
WORDS = tuple(
    "ant apple bean bell bird boat book cake car cat chair cloud corn cow cup dog door duck "
    "egg fish fork frog goat hat horse house key lamp leaf lion moon mouse nest pear pig rain "
    "rose ship shoe star sun tree".split()
)
QUESTIONS = {
    "word": ("which word is it?", "what word is written?", "what does it say?"),
    "first": ("what is the first letter?", "which letter does it begin with?"),
    "last": ("what is the last letter?", "which letter does it end with?"),
    "length": ("how many letters are there?", "how many letters does it have?"),
    "contains": ("does it contain the letter {}?", "is there the letter {}?"),
}


@functools.cache
def font(name, size):
    """A font of `FONTS` at `size` pixels."""
    if name is None:
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, size)


def answer(kind, text, letter):
    """The answer about the written `text`; `letter` is asked for by the kind `contains`."""
    return {
        "word": text,
        "first": text[0],
        "last": text[-1],
        "length": str(len(text)),
        "contains": "yes" if letter in text else "no",
    }[kind]


def scene(rng):
    """A picture with a word or, in half of them, a code of 2 to 5 letters."""
    is_word = rng.random() < 0.5
    letters = string.ascii_lowercase
    code = "".join(choose(rng, letters) for _ in range(int(rng.integers(2, 6))))
    text = choose(rng, WORDS) if is_word else code
    image = Image.fromarray(background(rng, PIXELS))
    name, size = choose(rng, FONTS), int(rng.integers(15, 25))
    while True:
        left, top, right, bottom = font(name, size).getbbox(text)
        room = (PIXELS - 2 - (right - left), PIXELS - 2 - (bottom - top))
        if min(room) >= 0:
            break
        size -= 1
    x, y = (1 + int(rng.integers(0, free + 1)) for free in room)
    ink = tuple(int(v) for v in rng.integers(0, 110, size=3))
    ImageDraw.Draw(image).text((x - left, y - top), text, font=font(name, size), fill=ink)
    inside, outside = sorted(set(text)), sorted(set(letters) - set(text))
    rows, asked = [], []
    for kind, phrases in QUESTIONS.items():
        if kind == "word" and not is_word:
            continue
        letter = choose(rng, inside if rng.random() < 0.5 else outside)
        question = choose(rng, phrases).format(letter)
        asked.append((kind, letter))
        rows.append(dict(question=question, answer=answer(kind, text, letter), question_type=kind))
    box = (x, y, x + right - left, y + bottom - top)
    return Scene(image, dict(text=text, font=name, size=size, box=box, asked=asked), rows)


def scenes(split, rng):
    """Scenes without end; all splits are drawn in the same way."""
    while True:
        yield scene(rng)
