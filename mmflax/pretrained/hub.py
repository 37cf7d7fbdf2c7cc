"""Where a checkpoint is: a folder, a file, or an id of the Hugging Face hub with its cache."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from mmflax.errors import MmflaxError

SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
OPEN_CLIP_SAFE, OPEN_CLIP_TORCH = ("open_clip_model.safetensors",), ("open_clip_pytorch_model.bin",)
FLAX = ("flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*.msgpack")
# Beside the weights: what the processor and the model are made from.
SMALL = ("*.json", "*.txt", "*.model")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(
    source: str | pathlib.Path, *, revision: str | None = None, offline: bool = False
) -> pathlib.Path:
    """The folder or file that `source` names; a hub id is downloaded, or found in the hub's cache.

    Args:
      source: a path, or `organization/name` as on the hub.
      revision: branch, tag or commit of a hub id.
      offline: only look into the cache (the variable HF_HUB_OFFLINE=1 does the same).

    Raises:
      MmflaxError: no such path and no such id, no network and nothing in the cache, or no
        permission; the message has what to download and where to put it.
    """
    check_name(source)
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    for weights in (SAFE, TORCH, OPEN_CLIP_SAFE, OPEN_CLIP_TORCH, FLAX):
        folder = _download(text, (*SMALL, *weights), revision, offline)
        if _has(folder, weights):
            return folder
    raise MmflaxError(
        f"The hub's {text} has no weights that are read here; expected {SAFE[0]}, {TORCH[0]} or "
        f"{FLAX[0]}."
    )


def check_name(source: str | pathlib.Path) -> None:
    """Raises for what is neither a path that exists nor a possible hub id; downloads nothing."""
    text = str(source)
    if pathlib.Path(source).expanduser().exists():
        return
    if not _ID.fullmatch(text) or text.count("/") > 1:
        raise MmflaxError(
            f"There is no {text}; expected a folder with config.json and weights, a weight file, a "
            "workdir, or a hub id such as google/vit-base-patch16-224."
        )


def _has(folder: pathlib.Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _download(
    name: str, patterns: Sequence[str], revision: str | None, offline: bool
) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    more: dict[str, Any] = {"local_files_only": True} if offline else {}
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), **more
        )
    except errors.GatedRepoError as error:
        raise MmflaxError(
            f"The hub's {name} asks for permission; accept its terms on its page and log in with "
            "`hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        where = f" at revision {revision!r}" if revision else ""
        raise MmflaxError(
            f"There is no folder {name}, and no such id on the hub{where}; correct the name, or "
            "log in with `hf auth login` if it is private."
        ) from error
    except errors.HFValidationError as error:
        raise MmflaxError(f"There is no {name}, and it is no hub id ({error}).") from error
    except Exception as error:  # no network shows as whatever the layers below raise
        raise MmflaxError(
            f"There is no folder {name}, it is not in the hub's cache, and the hub cannot be "
            f"reached ({type(error).__name__}); download config.json, {SAFE[0]}, the tokenizer's "
            f"and the preprocessor's files of {name} elsewhere, put them in one folder and give "
            "its path."
        ) from error
    return pathlib.Path(folder)
