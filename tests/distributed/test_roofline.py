"""A step's time from peaks, against sums done by hand."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmflax.distributed.chips import Chip, chip_of
from mmflax.distributed.collectives import KINDS, Collective, ring_bytes
from mmflax.distributed.roofline import roofline

# 1 s for 100 FLOPs, 10 bytes of HBM, 4 bytes in one ring or 1 byte between slices.
CHIP = Chip(
    name="slow",
    device_kinds=("slow",),
    flops=100,
    memory=1,
    memory_bandwidth=10,
    ici=8,
    axes=2,
    dcn=1,
    source="",
)


def sent(kind="all-gather", axes=("fsdp",), size=4, group=4, times=1, overlapped=False):
    return Collective(kind, axes, size, group, times, overlapped)


@pytest.mark.parametrize(
    ("flops", "memory", "collectives", "step", "bound"),
    [
        (300, 20, [], 3, "compute"),
        (300, 50, [], 5, "memory"),
        (300, 20, [sent(size=8)], 5, "compute"),
        (300, 20, [sent(size=8, times=3)], 9, "network"),
        (300, 20, [sent(size=8, overlapped=True)], 3, "compute"),
        (300, 20, [sent(size=8, times=2, overlapped=True)], 4, "network"),
        (300, 20, [sent(size=8, times=2, overlapped=True), sent()], 5, "network"),
    ],
)
def test_what_overlaps_is_free_until_it_is_the_longest(flops, memory, collectives, step, bound):
    found = roofline(flops, memory, collectives, CHIP)
    assert (found.step, found.bound) == (step, bound)
    assert found.share_of_peak == pytest.approx(flops / 100 / step)


def test_more_axes_have_more_rings_as_far_as_the_torus_goes():
    def seconds(*axes):
        return roofline(0, 0, [sent(axes=axes)], CHIP).network_exposed

    assert seconds("fsdp") == 1
    assert seconds("data", "fsdp") == 0.5
    assert seconds("data", "fsdp", "tensor") == 0.5
    assert seconds() == 1


def test_the_scaling_book():
    """Part 3, question 2: gathering 1024 x 4096 bf16 over one axis of a v4 4x4x4 cube, 23 us.

    The other dimension is split four ways. Its link has 45 GB/s, ours the published 50.
    """
    chip = chip_of("TPU v4")
    book = dataclasses.replace(chip, ici=6 * 45e9)
    part = 2 * 1024 * 4096 // 4
    gather = sent(axes=("X",), size=part)  # the book leaves (n-1)/n out
    assert roofline(0, 0, [gather], book).step == pytest.approx(23e-6, rel=0.02)
    exact = sent(axes=("X",), size=ring_bytes("all-gather", part // 4, 4))
    assert roofline(0, 0, [exact], chip).step == pytest.approx(0.75 * 0.9 * 23.3e-6, rel=0.01)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_an_all_to_all_takes_a_quarter_of_a_gather(n):
    """The scaling book, part 3, of a bidirectional ring: V / 4 W against V / W."""
    total = n * n * 60
    gather = sent(size=ring_bytes("all-gather", total // n, n), group=n)
    exchange = sent("all-to-all", size=ring_bytes("all-to-all", total // n, n), group=n)
    whole = roofline(0, 0, [gather], CHIP).step * n / (n - 1)  # V / W
    assert roofline(0, 0, [exchange], CHIP).step == pytest.approx(whole / 4)


def test_a_switch_has_no_distances():
    switch = dataclasses.replace(CHIP, axes=1)
    assert roofline(0, 0, [sent("all-to-all", group=8)], switch).step == 4 / 8


def test_a_sum_over_slices_is_hierarchical():
    """8 chips in 2 slices: scatter 32 bytes over 4, sum 8 between slices, gather over 4."""
    one = sent("all-reduce", ("data",), ring_bytes("all-reduce", 32, 8), group=8)
    found = roofline(0, 0, [one], CHIP, slices=2)
    between = ring_bytes("all-reduce", 32 // 4, 2)
    within = ring_bytes("reduce-scatter", 32, 4) + ring_bytes("all-gather", 32 // 4, 4)
    assert found.dcn == pytest.approx(between / CHIP.dcn)
    assert found.network_exposed == pytest.approx(between / CHIP.dcn + within / CHIP.ring)


def test_an_exchange_that_the_program_names():
    """libtpu's program for a slice: what it leaves to the host is all between slices."""
    one = dataclasses.replace(sent("all-reduce", ("data",), 3, group=2), slices=2)
    found = roofline(0, 0, [one, sent(axes=("data",))], CHIP)
    assert (found.dcn, found.network_exposed) == (3, 3 + 1)


def test_an_exchange_between_slices():
    """Of 7 parts sent, 4 go to the other slice."""
    one = sent("all-to-all", ("data",), 7, group=8)
    assert roofline(0, 0, [one], CHIP, slices=2).dcn == pytest.approx(4)


def test_only_the_axes_that_cross_slices_use_the_slow_network():
    collectives = [sent(axes=("fsdp",)), sent(axes=("tensor",), overlapped=True)]
    assert roofline(0, 0, collectives, CHIP, slices=4).dcn == 0
    assert roofline(0, 0, collectives, CHIP, slices=4, across=("fsdp",)).dcn == 4
    assert roofline(0, 0, [sent(axes=("data",), group=4)], CHIP, slices=1).dcn == 0
    # What cannot be placed is taken to cross.
    assert roofline(0, 0, [sent(axes=(), group=4)], CHIP, slices=4).dcn == 4


def test_nothing_takes_no_time():
    found = roofline(0, 0, [], CHIP)
    assert (found.step, found.share_of_peak) == (0, 0)


@given(
    st.floats(0, 1e3),
    st.floats(0, 1e3),
    st.lists(
        st.builds(
            Collective,
            st.sampled_from(KINDS),
            st.sampled_from([("data",), ("fsdp",), ("data", "fsdp"), ()]),
            st.integers(0, 1000),
            st.integers(2, 16),
            st.integers(1, 5),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.sampled_from([1, 2]),
)
def test_no_part_is_longer_than_the_step(flops, memory, collectives, slices):
    found = roofline(flops, memory, collectives, CHIP, slices)
    parts = (found.compute, found.memory, found.network_exposed, found.network_overlapped)
    assert max(parts) <= found.step <= sum(parts) + 1e-9
    assert found.dcn <= found.network_exposed + found.network_overlapped + 1e-9
    assert 0 <= found.share_of_peak <= 1
    slower = [dataclasses.replace(one, overlapped=False) for one in collectives]
    assert found.step <= roofline(flops, memory, slower, CHIP, slices).step * (1 + 1e-9)
