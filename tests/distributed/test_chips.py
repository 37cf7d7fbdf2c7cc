"""Published figures, held together by what they must agree on."""

import jax
import pytest

from mmflax.distributed.chips import CHIPS, chip_of
from mmflax.training import observe


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        # As libtpu's topologies and the CUDA driver print them.
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU7x", "TPU7x"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA B200", "NVIDIA B200"),
    ],
)
def test_device_kinds(kind, name):
    assert chip_of(kind).name == name


def test_unknown_devices_have_no_chip():
    assert chip_of(jax.devices("cpu")[0].device_kind) is None
    assert chip_of("NVIDIA GeForce RTX 4090") is None


def test_there_is_one_table():
    for chip in CHIPS:
        assert observe.peak_flops(chip.device_kinds[0]) == chip.flops


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_are_of_the_right_size(chip):
    """Units: a figure in bits, GB or TFLOP/s would leave these ranges."""
    assert 2e14 * 0.9 < chip.flops < 3e15
    assert 15e9 < chip.memory < 300e9
    # Each step away from the chip is slower; a link of ICI has 50 or 100 GB/s.
    assert chip.memory_bandwidth > chip.ici > chip.dcn > 2e9
    assert chip.axes in (1, 2, 3)
    if chip.axes > 1:
        assert chip.ring in (100e9, 200e9)
    # FLOPs a byte of HBM: the scaling book, part 1, has 240 for v5e.
    assert 100 < chip.flops / chip.memory_bandwidth < 600
    assert chip.source


def test_v5e_has_the_pod_figures_of_its_page():
    """Cloud TPU docs, "TPU v5e": all-reduce 51.2 TB/s, bisection 1.6 TB/s and DCN 6.4 Tb/s."""
    chip = chip_of("TPU v5e")
    assert 256 * chip.ici == 51.2e12
    # 16 rings are cut twice; a link is a quarter of a chip's.
    assert 2 * 16 * chip.ici / 4 == 1.6e12
    assert 256 * chip.dcn * 8 == pytest.approx(6.4e12)
