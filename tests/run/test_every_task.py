"""Every task over pixels and over regions, with images and texts that may be absent: trained,
evaluated and asked with batches that the processor made; what cannot work is told before."""

import math
import pathlib

import pytest

from mmflax.data.dataset import select_image
from mmflax.errors import MmflaxError
from mmflax.inference.search import Retriever
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.train import train
from tests import mixed_data

IMAGES = {
    "pixels": dict(name="vit", width=16, depth=1, num_heads=2, patch_size=4),
    "regions": dict(name="regions", width=16, num_heads=2, form="uniter", mask_embedding=True),
}
HIDDEN = {"pixels": "masked_patch", "regions": "masked_region"}
# task: (its config, fields of the processor, a metric that it must report)
TASKS = {
    "vqa": (
        dict(loss="sigmoid", caption_words=0.1),
        dict(soft_answers=True, caption_length=8),
        "vqa_accuracy",
    ),
    "classification": ({}, {}, "macro_f1"),
    "matching": ({}, {}, "accuracy/answer/yes"),
    "reasoning": (dict(images=1), {}, "accuracy"),
    "pairs": (dict(name="reasoning"), {}, "consistency"),
    "generation": (dict(decoder=dict(width=16, depth=1, num_heads=2)), {}, "cider_d"),
    "retrieval": (dict(embed_dim=8, fused=True), {}, "i2t/recall@1"),
    "pretraining": (
        dict(objectives=dict(itc=dict(embed_dim=8), itm=1.0, mlm=1.0)),
        {},
        "loss/itm",
    ),
}
EVERY_DAY = {("generation", "regions"), ("retrieval", "regions")}
CASES = [
    pytest.param(task, kind, marks=() if (task, kind) in EVERY_DAY else pytest.mark.slow)
    for task in TASKS
    for kind in IMAGES
]


def config(task, kind, drop="", **fields):
    given, processor, _ = TASKS[task]
    given = {"name": task} | given
    if task == "pretraining":
        given |= dict(objectives=given["objectives"] | {HIDDEN[kind]: 1.0})
    return {
        "seed": 0,
        "model": {
            "image_encoder": IMAGES[kind],
            "text_encoder": dict(name="bert", width=16, depth=1, num_heads=2),
            "fusion": dict(name="merged_attention", width=16, depth=1, num_heads=2),
        },
        "task": given | fields,
        "data": dict(name="tests.mixed_data", regions=kind == "regions", pairs=task == "pairs",
                     drop=drop, batch_size=8, num_threads=0),
        "processor": dict(image_size=8, max_length=8, vocab_size=60) | processor,
        "optim": dict(name="adamw", schedule=dict(name="constant", peak=1e-3)),
        "mesh": dict(data=-1, fsdp=1, tensor=1),
        "train": dict(steps=2, log_every=1, eval_every=2, checkpoint_every=2),
        "evaluation": dict(split="validation", batch_size=8, bootstrap=0),
        "checkpoint": dict(keep_best=0),
    }  # fmt: skip


def check_report(report, task, sheet):
    assert report.note is None and report.checkpoint == "step 2, the last"
    lines = "\n".join(report.lines())
    if task == "pretraining":
        assert (lines, report.mistakes, sheet.exists()) == ("", None, False)
        return
    assert report.examples and (report.mistakes is not None) == (report.wrong > 0)
    assert sheet.exists() == (report.wrong > 0)
    assert ("mistakes.png" in lines) == (report.wrong > 0)
    assert len(report.types) <= 3 and (task != "retrieval" or not report.types)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(("task", "kind"), CASES)
def test_a_task_trains_is_evaluated_and_asked(task, kind, tmp_path):
    workdir = str(tmp_path / "run")
    reports = []
    result = train(config(task, kind), workdir, quiet=True, at_end=reports.append)
    check_report(*reports, task, tmp_path / "run" / "eval" / "mistakes.png")
    assert math.isfinite(result.metrics["validation/loss"])
    metrics = evaluate(workdir, "test")["metrics"]
    blind = set() if task == "retrieval" else {"text_only", "image_only"}
    assert metrics.keys() >= {"full"} | blind
    assert TASKS[task][-1] in metrics["full"]
    if task == "pretraining":
        assert f"loss/{HIDDEN[kind]}" in metrics["full"]
        assert ("masked_region_accuracy" in metrics["full"]) == (kind == "regions")
    assert all(math.isfinite(value) for view in metrics.values() for value in view.values())

    run = load(workdir, batch_size=2)
    data = mixed_data.build(regions=kind == "regions", pairs=task == "pairs").source("test")
    image, other = (select_image(data[index]) for index in (0, 4))
    text = data[0]["question"]
    if task == "retrieval":
        retriever = Retriever(run.task.search, run.params, run.processor, batch_size=4)
        assert {hit.index for hit in retriever.find_images(text, [image, other])} == {0, 1}
        assert retriever.find_texts(image, [text])[0].index == 0
    elif task == "pretraining":
        with pytest.raises(MmflaxError, match="neither picks answers nor writes text"):
            run.predict(image, text)
    else:
        asked = dict(second_image=other) if task == "pairs" else {}
        for one in ((image, text), (None, text), (image, None)):
            assert isinstance(run.predict(*one, **asked).answer, str)


PIXELS, REGIONS = "pixels", "regions"
REFUSED = [
    (config("vqa", PIXELS, drop="answer"), "needs an 'answer' of every training example"),
    (config("vqa", PIXELS) | {"processor": dict(image_size=8)}, "needs 'answer_scores'.*soft_ans"),
    (config("classification", PIXELS, caption_words=0.5), "needs 'caption'.*caption_length"),
    (
        config("generation", REGIONS, drop="target"),
        "target_length is 0.*give --config.processor.target_length=TOKENS",
    ),
    (config("reasoning", PIXELS, images=2), "needs 'second_image'.*--config.task.images=1"),
    (config("reasoning", REGIONS, images=2), "needs 'second_image'.*--config.task.images=1"),
    (
        config("pretraining", PIXELS, objectives=dict(captioning=1.0), drop="target"),
        "'captioning' needs 'target'",
    ),
    (config("pretraining", PIXELS, objectives=dict(masked_region=1.0)), "ViT reads pixels"),
    (config("pretraining", REGIONS, objectives=dict(masked_patch=1.0)), "masked_patch.*'image'"),
    (config("matching", PIXELS) | {"model": config("matching", REGIONS)["model"]}, "data lack"),
    (config("matching", REGIONS) | {"model": config("matching", PIXELS)["model"]}, "data lack"),
    (config("retrieval", PIXELS, drop="image"), "data lack|has no image"),
]


@pytest.mark.parametrize(("refused", "message"), REFUSED)
def test_what_makes_no_sense_is_one_sentence_before_training(refused, message, tmp_path):
    with pytest.raises(MmflaxError, match=message) as caught:
        train(refused, str(tmp_path / "run"), quiet=True)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0
    assert not pathlib.Path(tmp_path / "run").exists()
