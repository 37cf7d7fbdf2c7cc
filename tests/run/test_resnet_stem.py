"""The hybrid's stem from the command line: one step of training reaches all of it."""

import json

import jax
import numpy as np
import pytest

from mmflax import paths
from mmflax.config.overrides import override
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment, example_batch
from mmflax.run.train import train
from tests import tiny

STEM = "--config.model.image_encoder.stem=resnet"
FEW = (
    "--config.model.image_encoder.stem_depths=1,1,1",
    "--config.model.image_encoder.stem_width=8",
    "--config.optim.schedule.warmup_steps=0",
    "--config.train.steps=1",
    "--config.train.log_every=1",
    "--config.train.eval_every=None",
)


def test_one_step_has_gradients_everywhere_in_the_stem(shapes_dir, tmp_path):
    config = override(tiny.config(shapes_dir), [STEM, *FEW])
    assert config["model"]["image_encoder"]["stem_depths"] == (1, 1, 1)
    result = train(config, str(tmp_path / "w"))
    text = (tmp_path / "w" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 1 and np.isfinite(losses).all()
    # After one step Adam's first moment is the gradient times 1 - b1.
    moments = {
        path: np.asarray(leaf)
        for path, leaf in paths.leaves(result.state.opt_state).items()
        if "mu/" in path and "/resnet_stem/" in path
    }
    stem = result.state.params["backbone"]["image_encoder"]["resnet_stem"]
    assert len(moments) == len(jax.tree.leaves(stem)) == 3 + 3 * (9 + 3) + 2
    for path, leaf in moments.items():
        assert np.isfinite(leaf).all() and (leaf != 0).any(), path


def test_without_sizes_the_stages_follow_the_patches(shapes_dir):
    config = override(tiny.config(shapes_dir), [STEM])
    experiment = Experiment(config)
    processor = experiment.learn_processor(experiment.dataset())
    task, batch = experiment.task(processor), example_batch(processor, 1)
    params = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    stem = params["params"]["backbone"]["image_encoder"]["resnet_stem"]
    assert sum(name.startswith("stage_") for name in stem) == 3 + 4 + 9


def test_patches_that_do_not_fit_are_told_with_what_does(shapes_dir):
    words = [STEM, "--config.processor.image_size=40", "--config.model.image_encoder.patch_size=10"]
    experiment = Experiment(override(tiny.config(shapes_dir), words))
    with pytest.raises(MmflaxError, match="patch_size is 10.*patch_size=8.*stem=conv") as error:
        experiment.task(experiment.learn_processor(experiment.dataset()))
    for remedy in ("patch_size=8", "stem=conv"):
        word = f"--config.model.image_encoder.{remedy}"
        assert word in str(error.value)
        mended = Experiment(override(experiment.config, [word]))
        mended.task(mended.learn_processor(mended.dataset()))
