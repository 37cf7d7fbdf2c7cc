"""Accuracy and consistency against the three scripts of lil-lab/nlvr."""

import pytest

from mmflax.errors import MmflaxError
from mmflax.metrics import reasoning
from tests.metrics import golden

GROUP = {
    "nlvr2": reasoning.nlvr2_group,
    "nlvr": reasoning.nlvr_group,
    "nlvr_images": reasoning.nlvr_group,
}


@pytest.mark.parametrize("case", GROUP)
def test_equals_the_official_script(case):
    official = golden.load("reasoning")[case]
    groups = [GROUP[case](identifier) for identifier in official["ids"]]
    found = reasoning.accuracy_and_consistency(official["predicted"], official["labels"], groups)
    assert found["accuracy"] == pytest.approx(official["result"]["precision"], abs=1e-12)
    assert found["consistency"] == pytest.approx(official["result"]["consistency"], abs=1e-12)
    assert 0 < found["consistency"] < found["accuracy"] < 1


def test_one_wrong_picture_makes_a_statement_inconsistent():
    found = reasoning.accuracy_and_consistency(
        ["True", "true", "false"], ["true", "false", "false"], ["s", "s", "t"]
    )
    assert found == {"accuracy": pytest.approx(2 / 3), "consistency": 0.5}


def test_a_foreign_identifier_is_named():
    with pytest.raises(MmflaxError, match="'dev-1' has 2 parts"):
        reasoning.nlvr2_group("dev-1")
