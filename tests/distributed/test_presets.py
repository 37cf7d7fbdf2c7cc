"""Sizes of a mesh by name."""

import pytest

from mmflax.distributed.presets import MOST_FSDP, ROWS, preset_sizes


@pytest.mark.parametrize(
    ("name", "devices", "fields", "sizes"),
    [
        ("dp", 8, {}, (8, 1, 1)),
        ("dp", 512, dict(slices=2), (512, 1, 1)),
        ("fsdp", 1, {}, (1, 1, 1)),
        ("fsdp", 8, {}, (1, 8, 1)),
        ("fsdp", 256, {}, (8, 32, 1)),
        ("fsdp", 256, dict(widths=(768, 1024)), (8, 32, 1)),
        ("fsdp", 256, dict(widths=(1024,)), (8, 32, 1)),
        ("fsdp", 16, dict(widths=(128,)), (1, 16, 1)),
        ("fsdp", 16, dict(widths=(64, 96)), (4, 4, 1)),  # 96 / 8 is 12 rows
        ("fsdp", 12, dict(widths=(96,)), (1, 12, 1)),
        ("fsdp", 8, dict(widths=(100,)), (8, 1, 1)),
        ("fsdp", 8, dict(widths=(8,)), (8, 1, 1)),
        ("fsdp", 512, dict(slices=2, widths=(2048,)), (16, 32, 1)),
        ("fsdp", 32, dict(slices=2), (2, 16, 1)),  # a slice's devices, and data over slices
        ("fsdp+tensor", 16, dict(heads=(12, 16), widths=(768,)), (1, 4, 4)),
        ("fsdp+tensor", 16, dict(heads=(12, 6), widths=(768,)), (1, 8, 2)),
        ("fsdp+tensor", 16, dict(heads=(3,), widths=(768,)), (1, 16, 1)),
        ("fsdp+tensor", 512, dict(slices=2, heads=(12,), widths=(768,)), (4, 32, 4)),
    ],
)
def test_sizes_divide_the_devices_of_a_slice_and_the_model(name, devices, fields, sizes):
    found = preset_sizes(name, devices, **fields)
    assert tuple(found.values()) == sizes
    assert found["data"] * found["fsdp"] * found["tensor"] == devices
    assert found["data"] % fields.get("slices", 1) == 0


@pytest.mark.parametrize("devices", [4, 12, 64, 256, 1024])
@pytest.mark.parametrize("width", [96, 768, 1024, 1152])
def test_parts_are_whole_tiles(devices, width):
    fsdp = preset_sizes("fsdp", devices, widths=(width,))["fsdp"]
    assert 1 < fsdp <= MOST_FSDP and width % fsdp == 0 and width // fsdp % ROWS == 0
