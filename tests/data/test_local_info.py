"""Preparing and opening data leaves nothing in the system's temporary folder."""

import tempfile

from mmflax.data.datasets import shapes
from mmflax.data.datasets.public import snli_ve
from tests.data.layouts import write_snli_ve


def test_no_temporary_folder_is_left(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    shapes.build(data_dir=tmp_path / "a", num_scenes=8, image_size=16)
    write_snli_ve(tmp_path / "source")
    snli_ve.build(data_dir=tmp_path / "b", source_dir=tmp_path / "source", partial=True)
    assert not list(temporary.iterdir())
