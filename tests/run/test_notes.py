"""What `evaluate` and `train` say beside their numbers."""

import json
import types

import pytest

from mmflax.data.dataset import Dataset
from mmflax.run import evaluate


@pytest.mark.parametrize(
    ("search", "rows", "said"),
    [
        (object(), [{"question": "a cat", "id": "0"}], True),
        (object(), [{"question": "a cat", "id": "0", "image_id": "x"}], False),
        (None, [{"question": "a cat", "id": "0"}], False),
        (object(), [], False),
    ],
)
def test_retrieval_without_names_of_images_is_said(search, rows, said):
    built = types.SimpleNamespace(task=types.SimpleNamespace(search=search))
    note = evaluate.image_note(built, Dataset("made", {"test": rows}), "test")
    assert (note is not None) == said
    assert not said or "test have no image_id" in note


def test_a_workdir_that_cannot_be_written_gives_the_result_and_a_note(trained, monkeypatch):
    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(evaluate, "write_file", refused)
    result = evaluate.evaluate(str(trained[0]), "test")
    assert 0 <= result["metrics"]["full"]["accuracy"] <= 1
    assert "test.json could not be written (Permission denied)" in result["notes"][-1]
    json.dumps(result)
