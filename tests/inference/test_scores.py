"""Scores of pairs on the command line, and scores that are not finite."""

import io
import json
import sys

import numpy as np
import pytest

from mmflax import cli
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.evaluation.engine import _check_finite
from mmflax.inference import predict, search
from mmflax.run import load


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits", "scores"])
def test_scores_that_are_not_finite_are_refused(name, bad):
    predict.check_finite({name: np.array([1.0, 2.0])}, "is it red?")
    with pytest.raises(MmflaxError, match=f"1 of 2 {name} of 'is it red.' are not finite"):
        predict.check_finite({name: np.array([1.0, bad])}, "is it red?")


def test_a_metric_that_is_not_finite_names_its_example():
    source = [{"id": f"row {i}"} for i in range(6)]
    sums, counts = np.array([0.0, np.nan, np.nan, np.nan]), np.array([1.0, 1.0, 0.0, 1.0])
    used = np.array([0, 1, 2])
    _check_finite("full", {"loss": (np.zeros(4), counts)}, used, source, 2)
    with pytest.raises(MmflaxError, match="loss of 1 of 3 .* first of example row 3"):
        _check_finite("full", {"loss": (sums, counts)}, used, source, 2)


def test_predict_compares_a_picture_with_texts_in_a_retrieval_run(monkeypatch, capsys):
    results = [search.SearchResult(1, 0.9, 2.0), search.SearchResult(0, 0.1, -2.0)]

    class Run:
        task = type("Task", (), {"predict": None, "search": object()})
        params, processor = {}, object()

    class Retriever:
        def __init__(self, *args, **fields):
            pass

        def find_texts(self, image, texts, *, top, rerank):
            assert (image, top, rerank) == ("a.png", len(texts), len(texts))
            return results[-len(texts) :]

    monkeypatch.setattr(load, "load", lambda *args, **fields: Run())
    monkeypatch.setattr(search, "Retriever", Retriever)
    words = ["predict", "--workdir", "w", "--image", "a.png", "--text", "a cat", "--text", "a dog"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == (
        "a dog  (cosine similarity 0.900, match 88.1%)\n"
        "a cat  (cosine similarity 0.100, match 11.9%)\n"
    )
    assert cli.main([*words[:-2], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "a cat" and found["match"] == pytest.approx(0.1192, abs=1e-4)
    assert cli.main(words[:-4]) == 1
    assert "give --image FILE and --text TEXT" in capsys.readouterr().err


def test_a_terminal_without_the_letters_shows_their_codes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    cli._print_safely()
    print("grün …", file=sys.stdout, flush=True)
    assert stream.buffer.getvalue() == b"gr\\xfcn \\u2026\n"


def test_a_text_is_refused_by_a_model_that_never_had_one(monkeypatch):
    row = {"image": np.zeros((8, 8, 3), np.uint8), "target": "a dog", "id": "0"}
    for question, reads in ((None, False), ("what?", True)):
        made = Dataset("made", {"train": [{**row, "question": question}]})
        processor = Processor.learn(made, image_size=8)
        assert processor.reads_text == reads
    blind = Processor.learn(Dataset("m", {"train": [{**row, "question": None}]}), image_size=8)
    task = type("Task", (), {"model": None, "predict": print})()
    run = predict.Predictor(task, {}, blind)
    with pytest.raises(MmflaxError, match="trained on images without texts"):
        run.predict(row["image"], "a red dog")


def test_an_image_is_refused_by_a_model_that_never_had_one():
    shown = {"image": np.zeros((8, 8, 3), np.uint8), "question": "a red dog", "answer": "yes"}
    row = {**shown, "image": None}
    for rows, reads in (([row, shown], True), ([row, row], False)):
        processor = Processor.learn(Dataset("made", {"train": rows}), image_size=8)
        assert processor.reads_image == reads
    task = type("Task", (), {"model": None, "predict": print})()
    run = predict.Predictor(task, {}, processor)
    with pytest.raises(MmflaxError, match="trained on texts without images"):
        run.predict(shown["image"], "a red dog")


@pytest.mark.parametrize("text", ["is it green?", "¿Qué color hacía?", "これはがきですか"])
def test_a_text_is_read_where_the_locale_is_ascii(text):
    assert cli._text(text.encode().decode("ascii", "surrogateescape")) == text
    assert cli._text(text) == text
