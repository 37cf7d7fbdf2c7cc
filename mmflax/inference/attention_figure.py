"""Figure of the text-to-image attention over an example's image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mmflax.errors import MmflaxError
from mmflax.inference.predict import Prediction, Predictor


def text_to_image(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The text stream's cross-attention of every fusion layer, first to last: [h t n] each."""
    # LXMERT's one cross-attention is called for the image first (0), then for the text (1).
    # A one-way fusion has layers for the text alone.
    calls = r"(?:text/cross_attention/attention|cross_attention/attention/1)"
    one_way = r"fusion/text_encoder/layers(?:_(\d+))?/cross_attention/attention"
    pattern = re.compile(rf"(?:fusion/.*layers(?:_(\d+))?/{calls}|{one_way})$")
    numbered: list[tuple[int, np.ndarray]] = []
    for path, value in weights.items():
        match = pattern.search(path)
        if not match:
            continue
        if match.lastindex is None:  # scanned: a leading layer axis
            numbered += [(i, layer[0]) for i, layer in enumerate(value)]
        else:
            numbered.append((int(match[match.lastindex]), value[0]))
    return [layer for _, layer in sorted(numbered, key=lambda pair: pair[0])]


def attention_map(
    layer: np.ndarray, grid: tuple[int, int], prefix: int, row: int = 0
) -> np.ndarray:
    """Mean over heads of one text token's attention [h t n] to the patches, as [rows columns].

    Renormalized to sum to 1 without the ``prefix`` tokens (CLS).
    """
    patches = layer[:, row, prefix:].mean(axis=0)
    return (patches / max(float(patches.sum()), 1e-12)).reshape(grid)


def draw(predictor: Predictor, image: Any, text: str, path: epath.PathLike) -> Prediction:
    """Writes a figure of the image, the attention of [CLS] in every fusion layer, and the answers.

    Returns:
      The prediction.
    """
    prediction = predictor.predict(image, text, top=5)
    encoder = predictor.model.backbone.image_encoder
    layers = text_to_image(predictor.attention(image, text))
    if not layers:
        raise MmflaxError(
            "This model has no text-to-image cross-attention to draw; use a fusion that has one, "
            "such as co_attention."
        )
    processor = predictor.processor
    picture = processor.picture(image)
    grid = encoder.grid()
    prefix = encoder.num_tokens() - grid[0] * grid[1]
    figure(np.asarray(picture), layers, grid, prefix, prediction, path)
    return prediction


def figure(
    picture: np.ndarray,
    layers: list[np.ndarray],
    grid: tuple[int, int],
    prefix: int,
    prediction: Prediction,
    path: epath.PathLike,
) -> None:
    """``picture`` uint8 [h w 3]; ``layers`` as ``text_to_image`` gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 + len(layers)
    fig = Figure(figsize=(2.5 * columns, 3.3), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, columns)
    height, width = picture.shape[:2]
    gray = picture.astype(np.float32).mean(axis=-1)
    axes[0].imshow(picture)
    axes[0].set_title("input image", fontsize=9)
    for number, (ax, layer) in enumerate(zip(axes[1:-1], layers, strict=True), start=1):
        ax.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        weights = attention_map(layer, grid, prefix)
        ax.imshow(
            weights,
            cmap="inferno",
            alpha=0.6,
            extent=(0, width, height, 0),
            interpolation="bilinear",
            vmin=0,
        )
        ax.set_title(f"fusion layer {number}", fontsize=9)
    for ax in axes[:-1]:
        ax.set_xticks([])
        ax.set_yticks([])
    names = [name if len(name) < 19 else name[:17] + "…" for name, _ in prediction.top][::-1]
    values = [value for _, value in prediction.top][::-1]
    axes[-1].barh(range(len(names)), values, color="#3b6fb6")
    axes[-1].set_yticks(range(len(names)), names, fontsize=9)
    axes[-1].set_xlim(0, 1)
    axes[-1].set_title("probability", fontsize=9)
    axes[-1].spines[["top", "right"]].set_visible(False)
    # Questions are untrusted text: no mathtext.
    title = f"{prediction.text}  →  {prediction.answer}"
    fig.suptitle(title.replace("$", r"\$"), fontsize=12, parse_math=False)
    save(fig, path)


def check_picture(path: epath.PathLike) -> None:
    """Raises unless a figure can be written there, by its suffix and its folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    formats = FigureCanvasAgg.get_supported_filetypes()
    target = epath.Path(path)
    if target.suffix.lstrip(".").lower() not in formats:
        raise MmflaxError(f"The picture {path} must end in one of {', '.join(sorted(formats))}.")
    if not target.parent.exists():
        raise MmflaxError(f"There is no folder {target.parent} to write the picture to; make it.")


def save(fig: Any, path: epath.PathLike) -> None:
    """Writes a matplotlib figure in the format of the file's suffix."""
    check_picture(path)
    target = epath.Path(path)
    with target.open("wb") as file:
        fig.savefig(file, format=target.suffix.lstrip(".").lower(), dpi=130)
