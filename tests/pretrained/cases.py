"""What every family of public checkpoints is held to; one file of cases a family in
`tests/parity/`.

A case makes a small original with random weights. From it come, without further code: the recorded
arrays (`tests/golden/record_pretrained.py`), the test on them that needs no torch, and the live
comparison of outputs, hidden states, gradients and the way back.
"""

import importlib
import json
import pathlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pretrained"
TOLERANCE = 2e-5  # relative to an output's scale


class Case(NamedTuple):
    """One original, and how it is asked.

    Attributes:
      original: () -> the torch module, built and randomized; torch is imported inside.
      batch: (numpy generator) -> our batch.
      call: (module, batch) -> its outputs as a mapping; tensors, and tuples of them for hidden
        states. `batch` still holds numpy arrays of our keys; see `torch_batch`.
      hidden: our stack's path -> the name of their tuple of hidden states, embeddings first; of a
        stack of several streams a tuple of names, one a stream.
      masks: name of an output or a tuple -> the batch key of the mask [b s] of its first two axes;
        what lies under a false mask is not compared.
      renamed: our output -> theirs, where the names differ.
      absent: our outputs that theirs does not give.
      save: (module, directory) -> None; transformers' own by default.
      golden: record this case for the tests without torch.
      gradients: compare the gradient of a random sum of all outputs, too.
      options: keywords of `from_pretrained`.
    """

    original: Callable[[], Any]
    batch: Callable[[np.random.Generator], dict[str, np.ndarray]]
    call: Callable[[Any, Mapping[str, np.ndarray]], Mapping[str, Any]]
    hidden: Mapping[str, str | tuple[str, ...]] = {}
    masks: Mapping[str, str] = {}
    renamed: Mapping[str, str] = {}
    absent: tuple[str, ...] = ()
    save: Callable[[Any, str], None] | None = None
    golden: bool = False
    gradients: bool = False
    options: Mapping[str, Any] = {}


PARITY = pathlib.Path(__file__).parents[1] / "parity"


def families() -> list[str]:
    names = {info.name for info in pkgutil.iter_modules([str(PARITY)])}
    return sorted(names - {"torch_parts"})


def all_cases(attribute: str = "CASES") -> dict[str, Case]:
    """`family/name` -> case, of every file in `tests/parity/` (`BASE` holds those of full size)."""
    return {
        f"{family}/{name}": case
        for family in families()
        for name, case in getattr(
            importlib.import_module(f"tests.parity.{family}"), attribute, {}
        ).items()
    }


def randomized(module: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Every weight random, norms around 1: untrained norms and biases would hide a mistake.

    Kernels are scaled by their fan-in, so that full-size models keep activations at unit size.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2 and "embedding" not in name:
                weight.copy_(noise * (scale * 4 / max(weight[0].numel(), 1) ** 0.5))
            elif "norm" in name.lower() and name.endswith("weight"):
                weight.copy_(1.0 + noise * scale)
            else:
                weight.copy_(noise * scale)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


def torch_batch(batch: Mapping[str, np.ndarray], **names: str) -> dict[str, Any]:
    """`theirs=ours` -> tensors under their names: images channels first, masks and ids as long."""
    import torch

    def one(key: str) -> Any:
        array = batch[key]
        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        tensor = torch.tensor(np.ascontiguousarray(array))
        return tensor if tensor.is_floating_point() else tensor.long()

    return {theirs: one(ours) for theirs, ours in names.items()}


def save_original(case: Case, module: Any, directory: pathlib.Path) -> None:
    if case.save is not None:
        directory.mkdir(parents=True, exist_ok=True)
        case.save(module, str(directory))
    else:
        module.save_pretrained(str(directory))


def save_half(module: Any, directory: str) -> None:
    """As transformers saves it, in float16, half the bytes.

    From then on the module computes with these weights, in float32.
    """
    module.half().save_pretrained(directory)
    module.float()


def theirs(case: Case, module: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and hidden states as arrays: `logits`, `hidden_states/0` …"""
    import torch

    with torch.no_grad():
        found = case.call(module, batch)
    flat: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if isinstance(value, (tuple, list)):
            flat |= {f"{name}/{i}": x.numpy() for i, x in enumerate(value) if x is not None}
        elif value is not None and hasattr(value, "numpy"):
            flat[name] = value.detach().numpy()
    return flat


def ours(case: Case, pretrained: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same of our model, under their names."""
    outputs, states = pretrained.with_hidden_states(batch)
    flat = {
        case.renamed.get(name, name): np.asarray(value)
        for name, value in outputs.items()
        if name not in case.absent
    }
    for path, name in case.hidden.items():
        for i, carry in enumerate(states[path]):
            names, streams = ((name,), (carry,)) if isinstance(name, str) else (name, carry)
            for each, x in zip(names, streams, strict=True):
                flat[f"{each}/{i}"] = np.asarray(x)
    return flat


def differences(
    case: Case,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Largest difference of every output over its own scale (its largest absolute value)."""
    result = {}
    for name, value in found.items():
        assert name in expected, f"theirs gives no {name}; it gives {sorted(expected)}"
        other = expected[name]
        assert value.shape == other.shape, (name, value.shape, other.shape)
        mask = case.masks.get(name.split("/")[0])
        if mask is not None:
            value, other = value[np.asarray(batch[mask])], other[np.asarray(batch[mask])]
        scale = max(float(np.abs(other).max()), 1e-6)
        difference = float(np.abs(value - other).max()) / scale
        result[name] = difference if np.isfinite(difference) else np.inf  # max() overlooks NaN
    return result


def batch_of(case: Case) -> dict[str, np.ndarray]:
    return case.batch(np.random.default_rng(0))


def load_golden(name: str) -> tuple[pathlib.Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(checkpoint directory, batch, outputs) that `record_pretrained.py` wrote."""
    directory = GOLDEN / name.replace("/", "-")
    with np.load(directory / "arrays.npz") as file:
        arrays = {key: file[key] for key in file.files}
    parts: tuple[dict, dict] = ({}, {})
    for key, value in arrays.items():
        part, rest = key.split(":", 1)
        parts[part == "output"][rest] = value
    return directory, parts[0], parts[1]


def golden_names() -> list[str]:
    return sorted(json.loads((GOLDEN / "index.json").read_text()))
