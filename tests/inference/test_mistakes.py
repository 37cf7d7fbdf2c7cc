"""Mistakes: which are the worst, by what, and that their sheet can be drawn and read."""

import numpy as np
import pytest

from mmflax.data.dataset import in_memory
from mmflax.data.processor import Processor
from mmflax.evaluation.corpus import Corpus
from mmflax.evaluation.engine import Rows
from mmflax.inference import mistakes, mistakes_figure
from mmflax.inference.attention_figure import save
from mmflax.inference.mistakes import Mistake, TypeScore


def rows(**metrics):
    number = len(next(iter(metrics.values())))
    records = [
        {"question": f"q{i}?", "answer": "yes", "target": f"t{i}", "predicted_answer": "no",
         "text": f"w{i}", "probability": [0.5, 0.9, 0.7, 0.6][i % 4],
         "question_type": "ab"[i % 2]}
        for i in range(number)
    ]  # fmt: skip
    pairs = {name: (np.array(v, float), np.ones(number)) for name, v in metrics.items()}
    return Rows(pairs, records, [10 + i for i in range(number)])


class Engine:
    """Gives rows; of a subset those of its examples."""

    def __init__(self, made):
        self.made, self.asked = made, None

    def rows(self, params, source):
        self.asked = source
        return {"full": self.made}


def test_wrong_answers_are_in_order_of_their_probability():
    engine = Engine(rows(accuracy=[1, 0, 0, 0]))
    found = mistakes.of_answers(engine, None, None, 2)
    assert (found.wrong, found.examples) == (3, 4)
    assert [(one.place, one.given, one.wanted) for one in found.worst] == [
        (11, "no (90%)", "yes"),
        (12, "no (70%)", "yes"),
    ]


def test_what_an_annotator_gave_and_what_is_not_known_is_no_mistake():
    made = rows(accuracy=[0, 0, 0, 0], vqa_score=[0.3, 0, 0, 0])
    made.records[1]["answer"] = None
    found = mistakes.of_answers(Engine(made), None, None, 9)
    assert [one.place for one in found.worst] == [12, 13]


def test_written_texts_are_in_order_of_the_surprise_at_the_right_words():
    judge = Engine(rows(exact=[1, 0, 0, 0], nll=[9, 1, 3, 2], token_accuracy=[1, 0, 0, 0]))
    written = rows(exact=[0, 0])
    written = written._replace(places=[0, 1])
    writer = Engine(written)
    found = mistakes.of_texts(judge, writer, None, list(range(20)), 2)
    assert [one.place for one in found.worst] == [12, 13] and found.wrong == 3
    assert [writer.asked[i] for i in range(len(writer.asked))] == [12, 13]


class Scorer:
    """Embeddings that are given."""

    def __init__(self, images, texts):
        self.made = {"image": np.eye(len(images))[images], "text": np.array(texts, float)}

    def images(self, given, bad):
        self.seen = list(given)
        return Corpus("image", {"embedding": self.made["image"]}, (), np.arange(len(self.seen)))

    def texts(self, given):
        self.asked = list(given)
        return Corpus("text", {"embedding": self.made["text"]}, ())


def test_queries_whose_own_picture_is_furthest_behind_come_first():
    source = [
        {"image": b"", "question": "a", "image_id": "x", "id": "0"},
        {"image": None, "question": "blind", "id": "1"},
        {"image": b"", "question": "b", "image_id": "y", "id": "2"},
        {"image": b"", "question": "c", "image_id": "x", "id": "3"},
        {"image": b"", "question": "d", "image_id": "z", "id": "4"},
    ]
    texts = [[0.9, 0.1, 0.0], [0.5, 0.3, 0.4], [0.1, 0.2, 0.9], [0.2, 0.1, 0.9]]
    scorer = Scorer([0, 1, 2], texts)
    found = mistakes.of_search(scorer, source, 9)
    assert scorer.asked == ["a", "b", "c", "d"] and len(scorer.seen) == 3
    assert (found.wrong, found.examples) == (2, 4)
    assert [(one.place, one.chosen) for one in found.worst] == [(3, 4), (2, 0)]
    assert "number 3 of 3" in found.worst[0].given
    source[4] |= {"question": "C "}  # now the picture that was chosen for c shows it, too
    found = mistakes.of_search(Scorer([0, 1, 2], texts), source, 9, equal_texts=True)
    assert [(one.place, one.chosen) for one in found.worst] == [(2, 0)] and found.examples == 4
    assert mistakes.of_search(Scorer([0, 1, 2], texts), source, 9).wrong == 2


def test_the_worst_types_stand_beside_their_priors():
    made = rows(accuracy=[1, 0] * 10 + [1] * 20)
    priors = {"question_prior/accuracy/b": 0.25}
    assert mistakes.worst_types(made, "accuracy", priors) == [
        TypeScore("b", "accuracy", 0.5, 20, 0.25),
        TypeScore("a", "accuracy", 1.0, 20, None),
    ]
    for record in made.records:
        record["question_type"] = "all"
    assert mistakes.worst_types(made, "accuracy", priors) == []


def test_a_type_of_few_examples_is_no_worst_one_beside_others():
    made = rows(accuracy=[0] + [1, 0] * 20)
    for record in made.records[:1]:
        record["question_type"] = "rare"
    names = [one.name for one in mistakes.worst_types(made, "accuracy", {}, count=3)]
    assert names[-1] == "rare" and len(names) == 3


@pytest.mark.parametrize(
    ("text", "lines"),
    [("short", 1), ("a word " * 90, 4), ("x" * 500, 4), ("", 1), ("a\nb\n\nc", 1)],
)
def test_texts_are_wrapped_and_cut(text, lines):
    shown = mistakes_figure.wrapped(text).split("\n")
    assert len(shown) == lines and max(map(len, shown)) <= 38


@pytest.mark.parametrize("second", [False, True])
def test_the_sheet_is_drawn_with_any_text(second, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)

    def example(answer):
        image = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        more = {"second_image": image} if second else {}
        return {"image": image, "question": "is it $x$?", "answer": answer, **more}

    data = in_memory({"train": [example("yes"), example("no")]})
    processor = Processor.learn(data, image_size=8, vocab_size=60)
    texts = ["is it $x^$ & <b>?", "赤い丸はありますか", "a long question " * 30, None]
    found = [Mistake(i % 2, text, "yes" * 60, "no (99%)", None) for i, text in enumerate(texts)]
    found.append(Mistake(0, "a circle", "left", "right", chosen=1))
    figures = []

    def saved(fig, path):
        save(fig, path)
        drawn = [ax for ax in fig.axes if ax.get_xlabel()]
        figures.append((drawn, [ax.get_tightbbox(fig.canvas.get_renderer()) for ax in drawn]))

    monkeypatch.setattr(mistakes_figure, "save", saved)
    path = tmp_path / "sheet.png"
    mistakes_figure.draw(found, data.source("train"), processor, path, "validation: 5 of 9")
    assert path.read_bytes()[:4] == b"\x89PNG"
    ((drawn, boxes),) = figures
    assert len(drawn) == 5 and (drawn[0].images[0].get_array().shape[1] > 8) == second
    assert drawn[4].images[0].get_array().shape[1] > 8  # both pictures of a search
    over = [(a, b) for a in range(5) for b in range(a) if boxes[a].overlaps(boxes[b])]
    assert over == []
