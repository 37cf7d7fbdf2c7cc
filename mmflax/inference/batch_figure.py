"""Figure of a batch: its arrays turned back into images and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmflax.data.processor import Processor
from mmflax.inference.attention_figure import save


def draw(
    batch: Mapping[str, Any], processor: Processor, path: epath.PathLike, columns: int = 6
) -> None:
    """Writes a batch's images, questions (decoded from their tokens) and answers.

    It shows what preprocessing did: the resize, the crop, words that the vocabulary splits in
    pieces (``##``) or lacks (``[UNK]``), and questions longer than ``max_length``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(batch["label"]) // columns)
    fig = Figure(figsize=(2.3 * columns, 2.75 * rows), layout="constrained")
    FigureCanvasAgg(fig)
    axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
    for ax in axes:
        ax.axis("off")
    for index, ax in enumerate(axes[: len(batch["label"])]):
        ax.imshow(picture(batch, index, processor))
        ax.set_title(
            caption(batch, index, processor), fontsize=8, loc="left", parse_math=False, wrap=True
        )
    save(fig, path)


def picture(batch: Mapping[str, Any], index: int, processor: Processor) -> np.ndarray:
    """An example's input image [h w 3] in 0..1, or two side by side; of regions their boxes."""
    if "image" not in batch:
        sides = [outlines(batch[key][index]) for key in ("boxes", "second_boxes") if key in batch]
        return np.concatenate(sides, axis=1)
    if "second_image" not in batch:
        return pixels(batch["image"][index], processor)
    first, second = (pixels(batch[key][index], processor) for key in ("image", "second_image"))
    gap = np.ones((first.shape[0], max(1, first.shape[1] // 16), 3), np.float32)
    return np.concatenate([first, gap, second], axis=1)


def outlines(boxes: np.ndarray, side: int = 128) -> np.ndarray:
    """Boxes [n 4] in 0..1 shaded on white [side side 3], darker where they overlap."""
    shade = np.ones((side, side, 3), np.float32)
    for x1, y1, x2, y2 in np.clip(np.round(boxes * side), 0, side).astype(int):
        shade[y1:y2, x1:x2] *= 0.9
    return shade


def pixels(image: np.ndarray, processor: Processor) -> np.ndarray:
    """A normalized image back in 0..1, [h w 3]."""
    mean, std = np.array(processor.mean, np.float32), np.array(processor.std, np.float32)
    return np.clip(image * std + mean, 0, 1)


def caption(batch: Mapping[str, Any], index: int, processor: Processor) -> str:
    """The text decoded from its tokens, then the answer or target, in lines of at most 33."""
    ids = np.asarray(batch["tokens"][index])[np.asarray(batch["text_mask"][index])]
    tokenizer = processor.tokenizer
    ends = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    words: Sequence[str] = [tokenizer.token(i) for i in ids.tolist() if i not in ends]
    label = int(batch["label"][index])
    if "target" in batch:
        answer = ["→", *processor.decode(batch["target"][index]).split()]
    elif processor.answers:
        answer = ["→", processor.answers[label] if label >= 0 else "(not among the answers)"]
    else:
        answer = []
    lines = [""]
    for word in [*words, *answer]:
        if len(lines[-1]) + len(word) > 33:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
