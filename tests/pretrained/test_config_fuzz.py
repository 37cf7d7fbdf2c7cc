"""A config.json that is not as transformers writes it gives the original's numbers, or an error.

Each family's small random checkpoints are loaded with 500 random mutations of their config.json, by
transformers and by mmflax. Never may the outputs differ without an error, and the only error is a
`MmflaxError`. Where transformers itself fails or would make up weights, mmflax raises.
"""

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.inspect import inspect, shapes_of
from tests.pretrained import cases
from tests.pretrained.mutations import OTHER_CLASS, mutations

COUNT = 500
LACKING = "lacks weights"
# The cases of each family that are mutated: one of every class whose fields are read elsewhere.
FAMILIES = {
    "bert": ("plain", "words", "classifier"),
    "roberta": ("plain", "words", "classifier", "token classifier"),
    "vit": ("plain", "classifier"),
    "deit": ("plain", "classifier", "teacher"),
    "swin": ("plain", "classifier"),
    "resnet": ("plain", "classifier"),
    "clip": ("pair", "text", "image projected", "classifier"),
    "siglip": ("pair", "text", "image"),
    "align": ("pair", "text", "image"),
    "blip": ("pair", "matching", "answer", "caption"),
    "bridgetower": ("whole precision", "words", "matching", "contrastive"),
    "vilt": ("plain", "questions", "images and text", "words", "matching"),
    "lxmert": ("plain", "pretraining", "answers"),
    "visual_bert": ("plain", "pretraining", "answers", "choices"),
}
# Of originals that are not in transformers no mutation may end in another error than ours.
OTHERS = {
    "meter": ("vqa", "nlvr2"),
    "uniter": ("answers", "pretraining"),
    "vilbert": ("pretraining", "tasks"),
}
# Mutations that change nothing in transformers load here, but for values of another JSON type than
# the key's or too low, and for these keys with an error that has these words.
REFUSED = {
    # A side that patches do not divide, or smaller than one, that the original never compares.
    "image_size": "image_size",
    # BridgeTower's text is causal in transformers 4 and is not in 5.
    "is_decoder": "is_decoder",
    # ViLT's classifier and the pooler of ViT and DeiT read these, and the other classes do not.
    "num_images": "expected -1, 1 or 2",
    "pooler_act": "expected one of",
    # Lists with an entry for each stage, of which transformers reads as many as one of them has.
    **dict.fromkeys(
        (
            "kernel_sizes", "out_channels", "strides", "num_block_repeats", "expand_ratios",
            "num_heads", "depths", "hidden_sizes",
        ),
        "have different lengths",
    ),
}  # fmt: skip
# Weights that no forward pass reads: BridgeTower's separate norms.
NOT_READ = "ln_separate"


class Original:
    """A case's module, what it saved, and the outputs of both sides for a config."""

    def __init__(self, case, folder):
        import torch

        self.case, self.folder = case, folder
        module = case.original()
        self.kind = type(module)
        with contextlib.redirect_stderr(io.StringIO()):
            cases.save_original(case, module, folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.state = {
            name: torch.tensor(np.asarray(value)) for name, value in inspect(folder).tensors.items()
        }
        self.batch = cases.batch_of(case)
        self.expected: dict = {}
        self.found: dict = {}

    def smallest(self):
        """The config without every key whose default says the same."""
        whole = self._theirs_of(self.config)

        def without(node, config, path=()):
            for key in list(node):
                value = node.pop(key)
                if (*path, key) in (("model_type",), ("architectures",)) or (
                    self._theirs_of(config) != whole
                ):
                    node[key] = value
                    if isinstance(value, dict) and key.endswith("_config"):
                        without(value, config, (*path, key))

        config = copy.deepcopy(self.config)
        without(config, config)
        return config

    def _theirs_of(self, config):
        """What transformers makes of a config; None where it refuses it."""
        try:
            return self.kind.config_class.from_dict(copy.deepcopy(config)).to_dict()
        except Exception:  # whatever transformers makes of it
            return None

    def theirs(self, config):
        """Outputs of transformers' class; None where it fails, `LACKING` if it makes up weights."""
        import torch

        try:
            made = self.kind.config_class.from_dict(copy.deepcopy(config))
            key = json.dumps(made.to_dict(), sort_keys=True, default=str)
            if key not in self.expected:
                self.expected[key] = None
                module, info = self.kind.from_pretrained(
                    None,
                    config=made,
                    state_dict=dict(self.state),
                    output_loading_info=True,
                    dtype=torch.float32,
                )
                lacking = [*info["missing_keys"], *info["mismatched_keys"]]
                if any(NOT_READ not in str(name) for name in lacking):
                    self.expected[key] = LACKING
                else:
                    found = cases.theirs(self.case, module.eval(), self.batch)
                    if all(np.isfinite(value).all() for value in found.values()):
                        self.expected[key] = found
            return self.expected[key]
        except Exception:  # whatever transformers makes of it
            return None

    def ours(self, config):
        """Our outputs, or a `MmflaxError`."""
        (self.folder / "config.json").write_text(json.dumps(config))
        try:
            checkpoint = inspect(self.folder)
            key = repr(checkpoint.fields), checkpoint.table
            if key not in self.found:
                self.found[key] = self._outputs()
            return self.found[key]
        except MmflaxError as error:
            return error

    def _outputs(self):
        try:
            pretrained = from_pretrained(self.folder, **self.case.options)
        except MmflaxError as error:
            return error
        arrays = {key: jnp.asarray(value) for key, value in self.batch.items()}
        outputs = pretrained.model.apply({"params": pretrained.params}, arrays)
        return {
            self.case.renamed.get(name, name): np.asarray(value)
            for name, value in outputs.items()
            if name not in self.case.absent
        }

    def differences(self, expected, found):
        return cases.differences(self.case, expected, found, self.batch)


def mutated(original, seed, count):
    """(config, mutation) of the whole config.json and of the smallest, each mutation once."""
    for number, base in enumerate((original.config, original.smallest())):
        done = set()
        for mutation in mutations(base, (*seed, number), count // 2):
            if str(mutation) not in done:
                done.add(str(mutation))
                yield mutation.applied(base), mutation


class Found(NamedTuple):
    """What a family's mutations gave.

    Attributes:
      wrong: those with other numbers in silence, or another error than ours.
      refused: those that change nothing in transformers, whose values may stand for the keys.
      harmless: how many change nothing in transformers.
    """

    wrong: list[str]
    refused: list[str]
    harmless: int


def tried(family, seed, folder):
    """`Found` of `COUNT` mutations of a family's cases."""
    wrong, refused, harmless = [], [], 0
    for number, name in enumerate(FAMILIES[family]):
        original = Original(cases.all_cases()[f"{family}/{name}"], folder / name)
        usual = original.theirs(original.config)
        assert usual is not None, name
        for config, mutation in mutated(original, (seed, number), COUNT // len(FAMILIES[family])):
            what = f"{name}: {mutation}"
            try:
                ours = original.ours(config)
            except Exception as error:  # reported with its mutation
                wrong.append(f"{what}: {type(error).__name__}: {error}"[:300])
                continue
            theirs = original.theirs(config)
            same = isinstance(theirs, dict) and unchanged(usual, theirs)
            # Whose class a file is of has to be said, and a key that is not known is an error.
            same = same and not mutation.names(OTHER_CLASS) and mutation.known(original.config)
            harmless += same
            if isinstance(ours, MmflaxError):
                listed = any(
                    path[-1] in REFUSED and REFUSED[path[-1]] in str(ours)
                    for path, _ in mutation.changes
                )
                if same and not listed and not mutation.invalid(original.config):
                    refused.append(f"{what}: {ours}"[:300])
            elif theirs == LACKING:
                wrong.append(f"{what}: loads, where transformers lacks weights")
            elif theirs is not None:
                try:
                    # What a file has beside a model's own weights transformers leaves out.
                    found = {name: x for name, x in ours.items() if name in theirs}
                    assert found, f"theirs gives {sorted(theirs)}, ours {sorted(ours)}"
                    found = original.differences(theirs, found)
                    worst = max(found.values())
                except AssertionError as error:
                    wrong.append(f"{what}: {error}"[:300])
                    continue
                if worst > cases.TOLERANCE:
                    wrong.append(f"{what}: differs by {worst:.1e}")
    return Found(wrong, refused, harmless)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_config_gives_other_numbers_in_silence(family, seed, tmp_path):
    torch = pytest.importorskip("torch")
    quiet()
    torch.set_num_threads(1)
    wrong, refused, harmless = tried(family, seed, tmp_path)
    assert not wrong, f"{len(wrong)} of {COUNT}:\n" + "\n".join(wrong)
    assert not refused, f"{len(refused)} of {harmless} harmless ones are refused:\n" + "\n".join(
        refused
    )
    assert harmless > COUNT // 10, "too few mutations change nothing to say so"


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_no_config_ends_in_another_error(family, tmp_path):
    wrong = []
    for number, name in enumerate(OTHERS[family]):
        directory, _, _ = cases.load_golden(f"{family}/{name}")
        shutil.copytree(directory, tmp_path / name)
        config = json.loads((directory / "config.json").read_text())
        done: set = set()
        for mutation in mutations(config, (0, number), COUNT // 2):
            (tmp_path / name / "config.json").write_text(json.dumps(mutation.applied(config)))
            try:
                checkpoint = inspect(tmp_path / name)
                key = repr(checkpoint.fields), checkpoint.table
                if key not in done:
                    done.add(key)
                    checkpoint.parameters(shapes_of(checkpoint.model))
            except MmflaxError:
                pass
            except Exception as error:  # reported with its mutation
                wrong.append(f"{name}: {mutation}: {type(error).__name__}: {error}"[:300])
    assert not wrong, f"{len(wrong)} of {COUNT}:\n" + "\n".join(wrong)


def quiet():
    """transformers reports every weight that a mutation leaves without a place."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()


def unchanged(usual, theirs):
    """Whether a mutation left transformers' outputs as they were."""
    return usual.keys() == theirs.keys() and all(
        usual[name].shape == theirs[name].shape and np.array_equal(usual[name], theirs[name])
        for name in usual
    )
