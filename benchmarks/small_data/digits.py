"""`digits`: scenes of real handwritten digits, from scikit-learn's `load_digits`.

Its 1,797 samples (8 x 8 pixels, 43 writers; Alpaydin & Kaynak 1998, UCI) are divided among the
splits, so that no stroke of validation or test was seen in training. Two to four digits stand in a
picture, each at its own height; what is left and right is decided by their horizontal order.
"""

import functools

import numpy as np
from PIL import Image

from .pictures import Scene, background, choose

SIZES = {"train": 8000, "validation": 500, "test": 1000}
PIXELS = 64
SIDES = (13, 17)  # a digit's height and width in pixels
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = tuple(word + ("es" if word.endswith("x") else "s") for word in WORDS)
QUESTIONS = {
    "left_of": "which digit is left of the {}?",
    "right_of": "which digit is right of the {}?",
    "how_many": "how many {} are there?",
    "sum": "what is the sum of the leftmost and the rightmost digit?",
    "largest": "which digit is the largest number?",
    "is_there": "is there a {}?",
}


@functools.cache
def handwriting():
    """(pictures [n 8 8] in 0..1, their digits [n], their splits [n])."""
    pictures, labels = samples()
    # Seven in ten of each digit's samples are train's, one validation's and two test's.
    order = np.zeros(len(labels), int)
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        order[of_digit] = np.random.default_rng(digit).permutation(len(of_digit))
    splits = np.array([*["train"] * 7, "validation", "test", "test"])[order % 10]
    return pictures / 16, labels, splits


def samples():
    """(pictures [1797 8 8] in 0..16, their digits [1797])."""
    from sklearn.datasets import load_digits  # of the extra `benchmarks`

    digits = load_digits()
    return digits.images, digits.target


def answer(kind, word, digits):
    """The answer; `digits` are those of the picture from left to right.

    `word` is the digit that the question names, or None.
    """
    if kind in ("left_of", "right_of"):
        return str(digits[digits.index(word) + (1 if kind == "right_of" else -1)])
    if kind == "how_many":
        return str(digits.count(word))
    if kind == "is_there":
        return "yes" if word in digits else "no"
    return str(digits[0] + digits[-1] if kind == "sum" else max(digits))


def questions(rng, digits):
    """The (kind, digit) pairs that are asked about a picture."""
    once = [place for place, digit in enumerate(digits) if digits.count(digit) == 1]
    asked = [("sum", None), ("largest", None)]
    absent = choose(rng, [digit for digit in range(10) if digit not in digits])
    for kind, share in (("how_many", 0.7), ("is_there", 0.5)):
        asked.append((kind, choose(rng, digits) if rng.random() < share else absent))
    if left := [place for place in once if place > 0]:
        asked.append(("left_of", digits[choose(rng, left)]))
    if right := [place for place in once if place < len(digits) - 1]:
        asked.append(("right_of", digits[choose(rng, right)]))
    return asked


def scene(rng, split):
    """A picture with digits of the split's handwriting."""
    pictures, labels, splits = handwriting()
    number = int(rng.integers(2, 5))
    pool = rng.integers(10, size=3)
    digits = [int(choose(rng, pool)) for _ in range(number)]
    canvas = background(rng, PIXELS, noise=16.0, level=(200, 256)).astype(float)
    ink, width, used, boxes = rng.integers(0, 90, size=3), PIXELS // number, [], []
    for place, digit in enumerate(digits):
        sample = int(choose(rng, np.flatnonzero((labels == digit) & (splits == split))))
        side = int(rng.integers(SIDES[0], min(SIDES[1], width) + 1))
        x = place * width + int(rng.integers(0, width - side + 1))
        y = int(rng.integers(0, PIXELS - side + 1))
        stroke = Image.fromarray((255 * pictures[sample]).astype(np.uint8))
        stroke = np.asarray(stroke.resize((side, side), Image.Resampling.BICUBIC))[..., None] / 255
        part = canvas[y : y + side, x : x + side]
        part[:] = part * (1 - stroke) + ink * stroke
        used.append(sample)
        boxes.append((x, y, side))
    rows = []
    for kind, word in questions(rng, digits):
        name = None if word is None else (PLURALS if kind == "how_many" else WORDS)[word]
        text = QUESTIONS[kind].format(name)
        rows.append(dict(question=text, answer=answer(kind, word, digits), question_type=kind))
    record = dict(digits=digits, samples=used, boxes=boxes)
    return Scene(Image.fromarray(canvas.astype(np.uint8)), record, rows)


def scenes(split, rng):
    """Scenes without end, with the handwriting of `split`."""
    while True:
        yield scene(rng, split)
