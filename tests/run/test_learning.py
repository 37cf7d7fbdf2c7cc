"""What is said of a run that learns, of one that does not, and of one that learns late."""

import json
import shlex
import types

import numpy as np
import pytest

from mmflax.config.overrides import override
from mmflax.config.reading import load_config
from mmflax.run.build import Experiment
from mmflax.run.learning import (
    LearningNotice,
    Remedies,
    Training,
    early_evaluations,
    noise,
    not_learning,
)
from mmflax.run.progress import standing
from tests.hints import hints

N = 1000


def processor(text=True, image=True):
    return types.SimpleNamespace(reads_text=text, reads_image=image)


def values(**named):
    return {f"validation/{name.replace('__', '/')}": value for name, value in named.items()}


# task: (values of an evaluation, the ranking metric, the processor, the line that is shown)
LINES = {
    "vqa": (
        values(accuracy=0.713, accuracy__color=0.9, majority__accuracy=0.4, loss=1.0,
               question_prior__accuracy=0.672, text_only__accuracy=0.642),
        "accuracy", processor(),
        "validation accuracy 71.3 %  (question prior 67.2 %, text only 64.2 %)",
    ),
    "matching": (
        values(accuracy=0.8, majority__accuracy=0.5, question_prior__accuracy=0.48,
               text_only__accuracy=0.51),
        "accuracy", processor(),
        "validation accuracy 80.0 %  (most frequent answer 50.0 %, text only 51.0 %)",
    ),
    "images alone": (
        values(accuracy=0.8, majority__accuracy=0.5, text_only__accuracy=0.5),
        "accuracy", processor(text=False),
        "validation accuracy 80.0 %  (most frequent answer 50.0 %)",
    ),
    "texts alone": (
        values(accuracy=0.8, majority__accuracy=0.5, text_only__accuracy=0.8),
        "accuracy", processor(image=False),
        "validation accuracy 80.0 %  (most frequent answer 50.0 %)",
    ),
    "captioning": (
        values(token_accuracy=0.61, exact=0.1, nll=2.0, text_only__token_accuracy=0.55),
        "token_accuracy", processor(text=False),
        "validation token accuracy 61.0 %  (no image 55.0 %)",
    ),
    "generative_vqa": (
        values(token_accuracy=0.61, exact=0.4, question_prior__exact=0.35, text_only__exact=0.3,
               text_only__token_accuracy=0.55),
        "exact", processor(),
        "validation exact 40.0 %  (question prior 35.0 %, text only 30.0 %)",
    ),
    "retrieval": (
        {"validation/in_batch_recall/t2i": 0.3, "validation/in_batch_recall/i2t": 0.4,
         "validation/chance/in_batch_recall/t2i": 0.008},
        "in_batch_recall/t2i", processor(),
        "validation in-batch recall t2i 30.0 %  (chance 0.8 %)",
    ),
    "pretraining": (
        values(mlm_accuracy=0.5, text_only__mlm_accuracy=0.4),
        "mlm_accuracy", processor(), "validation mlm accuracy 50.0 %  (text only 40.0 %)",
    ),
    "ranked by loss": (
        values(accuracy=0.7, loss=0.5, majority__accuracy=0.5), "loss", processor(),
        "validation accuracy 70.0 %  (most frequent answer 50.0 %)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", LINES)
def test_the_line_has_the_baselines_of_the_task(task):
    shown, best, given, expected = LINES[task]
    assert standing(shown, "validation", f"validation/{best}", given).line() == expected


def test_without_a_metric_nothing_is_made_up():
    assert standing(values(loss=1.0, nll=2.0), "validation", "validation/loss", processor()) is None


@pytest.fixture(scope="module")
def config():
    changed = ["--config.model.image_encoder.stem=patch", "--config.train.steps=3600"]
    return load_config("configs/shapes_vqa.py", changed)


@pytest.fixture(scope="module")
def remedies(config):
    return Remedies(Experiment(config), image_size=48)


def vqa(accuracy, blind=0.3, prior=0.4, majority=0.2):
    shown = values(accuracy=accuracy, majority__accuracy=majority, loss=1.0,
                   question_prior__accuracy=prior, text_only__accuracy=blind)  # fmt: skip
    return standing(shown, "validation", None, processor())


FALLING = Training(2.0, 1.0, {"accuracy": 0.4})
# what: (standing, what training recorded, what the sentence has; None: there is none)
SAID = {
    "learned": (vqa(0.9), FALLING, None),
    "at the prior, the loss falls": (vqa(0.41), FALLING, "model.image_encoder.stem=conv"),
    "at the prior, more steps": (vqa(0.41), FALLING, "--config.train.steps=7200"),
    "below the prior": (vqa(0.1), FALLING, "not clearly better than the question prior (40.0 %"),
    "the loss is flat": (vqa(0.41), Training(2.0, 1.99, {}), "the training loss does not fall"),
    "the loss grows": (vqa(0.41), Training(2.0, 9.0, {}), "--config.optim.schedule.peak=0.0003"),
    "one record": (vqa(0.41), Training(2.0, None, {}), "--config.train.steps=7200"),
    "by heart": (vqa(0.41), Training(2.0, 0.1, {"accuracy": 0.95}), "optim.weight_decay=0.1"),
    "skewed": (vqa(0.93, prior=0.93, majority=0.93), FALLING, "93.0 % of the answers are one"),
    "by the text": (
        vqa(0.6, blind=0.59),
        FALLING,
        "not clearly better than with the text only (59.0 %)",
    ),
    "not finite": (vqa(float("nan")), FALLING, None),
}


@pytest.mark.parametrize("what", SAID)
def test_the_sentence_fits_what_is_seen(what, remedies, config):
    now, seen, expected = SAID[what]
    text = not_learning(now, N, 360, 3600, seen, remedies)
    if expected is None:
        assert text is None
        return
    assert expected in text and "\n" not in text and ". " not in text
    for hint in hints(text):
        (word,) = shlex.split(hint)
        override(config, [word])


@pytest.mark.parametrize("examples", [30, 300, 3000])
@pytest.mark.parametrize("prior", [0.0, 0.05, 0.5, 0.93])
def test_chance_alone_is_no_learning_and_learning_is_seen(examples, prior, remedies):
    """Of models at the prior about 2 % look better by chance; one 6 standard errors above is."""
    draw = np.random.default_rng(examples)
    found = draw.binomial(examples, prior, 300) / examples

    def silent(accuracy):
        now = vqa(accuracy, blind=0.0, prior=prior, majority=min(prior, 0.2))
        return not_learning(now, examples, 10, 100, FALLING, remedies) is None

    assert sum(map(silent, found)) <= 0.06 * len(found)
    above = prior + 3 * noise(prior, examples)
    assert above > 1 or silent(above)


def notice(remedies, tmp_path, step=0, total=100):
    said = []

    def judge(shown):
        return vqa(shown["validation/accuracy"])

    made = LearningNotice(said.append, judge, N, remedies, tmp_path / "metrics.jsonl")
    made.start(step, total)
    return made, said


STEPS = {"steps_per_second": 1.0, "loss": 2.0, "accuracy": 0.4}


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({10: 0.41, 20: 0.4, 50: 0.41, 60: 0.4, 100: 0.41}, [10, 50]),
        ({10: 0.7, 50: 0.7, 100: 0.7}, []),
        ({10: 0.41, 30: 0.4, 50: 0.7, 100: 0.9}, [10]),  # learned late
        ({25: 0.41, 75: 0.41, 90: 0.4}, [25, 75]),
        ({2: 0.41, 9: 0.41}, []),  # too early to say
        ({100: 0.41}, [100]),  # both at once
    ],
)
def test_it_is_said_at_a_tenth_and_once_more_at_half(curve, expected, remedies, tmp_path):
    made, said = notice(remedies, tmp_path)
    steps = []
    for step, accuracy in curve.items():
        made.record(step, STEPS)
        before = len(said)
        made.record(step, {"validation/accuracy": accuracy})
        steps += [step] * (len(said) - before)
    assert steps == expected and all(text.startswith("note: after ") for text in said)


def test_a_resumed_run_neither_repeats_it_nor_forgets_its_losses(remedies, tmp_path):
    lines = [{"step": 5, **STEPS}, {"step": 20, **STEPS, "loss": 1.0}, {"step": 99, **STEPS}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"st')
    made, said = notice(remedies, tmp_path, step=20)
    made.record(30, {"validation/accuracy": 0.41})
    assert said == []
    made.record(50, {**STEPS, "loss": 1.99})
    made.record(50, {"validation/accuracy": 0.41})
    assert len(said) == 1 and "does not fall (2.000, then 1.990)" in said[0]


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (1000, None, {100}),
        (1000, 500, {100}),
        (1000, 100, set()),
        (1001, 100, set()),
        (40, 20, set()),
    ],  # fmt: skip
)
def test_an_evaluation_happens_by_a_tenth(steps, every, expected):
    assert early_evaluations(steps, every) == expected
