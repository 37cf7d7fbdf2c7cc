"""Finding a checkpoint: what is on disk is used, what is not is explained."""

import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained import hub


def test_paths_are_taken_as_they_are(tmp_path):
    assert hub.locate(tmp_path) == tmp_path
    with pytest.raises(MmflaxError, match=r"There is no \./no/such/x; expected a folder"):
        hub.locate("./no/such/x")


def test_a_hub_id_comes_from_the_cache_when_there_is_no_network(tmp_path, monkeypatch):
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (snapshot / "config.json").write_text("{}")
    refs = cache / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert hub.locate("someone/tiny", offline=True) == snapshot
    with pytest.raises(MmflaxError, match="not in the hub's cache.*download config.json") as raised:
        hub.locate("someone/other", offline=True)
    assert "put them in one folder" in str(raised.value)
