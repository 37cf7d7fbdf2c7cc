"""Files are written whole or not at all."""

import pytest
from etils import epath

from mmflax.files import write_file


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_file(path, "старый")
    write_file(path, "new")
    assert path.read_bytes() == b"new"

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(path)), "write_bytes", full)
    with pytest.raises(OSError):
        write_file(path, "newer")
    assert path.read_text() == "new"
    monkeypatch.undo()
    write_file(path, b"\x00bytes")
    assert path.read_bytes() == b"\x00bytes"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
