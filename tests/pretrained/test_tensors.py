"""Weight files: what is in them is read, what is wrong with them is one sentence."""

import collections
import json
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmflax.errors import MmflaxError
from mmflax.pretrained.tensors import open_tensors

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "number": np.array(3.0, np.float32),
    "ids": np.arange(4),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def same(tensors, arrays=ARRAYS):
    assert set(tensors) == set(arrays)
    assert tensors.shapes == {name: x.shape for name, x in arrays.items()}
    for name, x in arrays.items():
        assert np.array_equal(tensors[name], x) and tensors[name].dtype == x.dtype


def test_safetensors_whole_and_sharded(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    same(open_tensors(tmp_path))
    same(open_tensors(tmp_path / "model.safetensors"))
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    files = {"one.safetensors": ("a", "half"), "two.safetensors": ("number", "ids")}
    for file, names in files.items():
        save_file({name: ARRAYS[name] for name in names}, sharded / file)
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    same(open_tensors(sharded))
    (sharded / "two.safetensors").unlink()
    with pytest.raises(MmflaxError, match="names 2 files, of which two.safetensors is not there"):
        open_tensors(sharded)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_safetensors(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path)
    whole = path.read_bytes()
    cut = {"truncated": whole[:-3], "header": b"\xff" * 8 + whole[8:], "empty": b""}[damage]
    path.write_bytes(cut)
    with pytest.raises(MmflaxError, match="truncated or corrupt"):
        open_tensors(path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(MmflaxError, match="holds no weights; expected one of model.safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(MmflaxError, match="There is no file"):
        open_tensors(tmp_path / "x.bin")
    (tmp_path / "x.h5").touch()
    with pytest.raises(MmflaxError, match=r"ends in '\.h5'"):
        open_tensors(tmp_path / "x.h5")


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_are_read_without_pytorch(tmp_path, torch, zipped):
    weights = collections.OrderedDict((name, torch.tensor(x)) for name, x in ARRAYS.items())
    weights["b"] = torch.arange(6.0).reshape(2, 3).T  # strides
    weights["view"] = weights["ids"][1:3]
    weights["parameter"] = torch.nn.Parameter(torch.ones(2))
    weights["bfloat"] = torch.tensor([1.5, -2.0]).bfloat16()
    path = tmp_path / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    found = open_tensors(tmp_path)
    for name, value in weights.items():
        assert np.array_equal(found[name].astype(np.float32), value.detach().float().numpy()), name
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "x.ckpt")
    assert set(open_tensors(tmp_path / "x.ckpt")) == set(weights)
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(MmflaxError, match=r"pytorch_model\.bin"):
            dict(open_tensors(path))


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps({"w": Code()}, protocol=2))
    else:
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"w": Code()}, [])
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(MmflaxError, match=r"asks to run posix\.system when it is opened"):
        open_tensors(path)
    assert not pathlib.Path("ran").exists()


def test_opening_reads_no_weights(tmp_path):
    save_file({"big": np.zeros((1 << 24,), np.float32)}, tmp_path / "model.safetensors")  # 64 MiB
    tracemalloc.start()
    tensors = open_tensors(tmp_path)
    assert tensors.shapes == {"big": (1 << 24,)}
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert tensors.bytes == 1 << 26
