"""Sheet of mistakes: each picture with its question, the right answer and the model's."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
from etils import epath

from mmflax.data.dataset import Source
from mmflax.data.processor import Processor
from mmflax.inference.attention_figure import save
from mmflax.inference.batch_figure import picture
from mmflax.inference.mistakes import Mistake, examples

COUNT = 12
_COLUMNS = 4
_WIDTH = 38  # letters of a line
_LINES = 4  # of one text at most


def draw(
    mistakes: Sequence[Mistake],
    source: Source,
    processor: Processor,
    path: epath.PathLike,
    title: str,
) -> None:
    """Writes the figure; pictures are as the model reads them, both of a pair.

    Of a search the left picture is the query's own, the right one what was chosen instead.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, max(len(mistakes), 1))
    rows = max(-(-len(mistakes) // columns), 1)
    fig = Figure(figsize=(max(3.0 * columns, 6.0), 3.7 * rows + 0.5))
    fig.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    FigureCanvasAgg(fig)
    axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    batches = examples(mistakes, source, processor)
    for ax, mistake, (own, other) in zip(axes, mistakes, batches, strict=False):
        image = picture(own, 0, processor)
        if other is not None:
            image = side_by_side(image, picture(other, 0, processor))
        ax.imshow(image)
        parts = (mistake.text, f"right: {mistake.wanted}", f"model: {mistake.given}")
        below = "\n".join(wrapped(part) for part in parts if part)
        ax.set_xlabel(below, fontsize=9, loc="left", parse_math=False)
    fig.suptitle(textwrap.fill(title, 30 * columns + 20), fontsize=11, parse_math=False)
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box, which says enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save(fig, path)


def wrapped(text: str) -> str:
    """The text in at most four lines, the rest an ellipsis; a word of any length is broken."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH) or [""]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _WIDTH - 2] + " …"]
    return "\n".join(lines)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures [h w 3] of one height with a white gap between them."""
    gap = np.ones((left.shape[0], max(1, left.shape[1] // 16), 3), np.float32)
    return np.concatenate([left, gap, right], axis=1)
