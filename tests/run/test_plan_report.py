"""The words of a plan."""

import dataclasses

from mmflax.distributed import plan as plans
from mmflax.distributed.chips import chip_of
from mmflax.distributed.collectives import Collective
from mmflax.distributed.roofline import roofline
from mmflax.run import plan_report
from mmflax.run.plan import RunPlan

KIND = "TPU v5 lite"


def planned(*sent):
    """A step of 1.97e11 FLOPs a chip, which are 1 ms of a v5e, on 2 x 4 chips in two slices."""
    chip = chip_of(KIND)
    step = plans.Plan(
        kind=KIND,
        chips=8,
        mesh=dict(data=2, fsdp=4, tensor=1),
        batch_size=64,
        memory=plans.Memory(*[2**20] * 8, limit=chip.memory),
        model_flops=8 * 197 * 10**9,
        flops=8 * 197 * 10**9,
        traffic=0,
        sent=sent,
        roofline=roofline(197e9, 0, sent, chip),
        seconds=1.0,
    )
    return RunPlan(step, steps=1000)


def test_time_by_what_it_goes_to():
    gather = Collective("all-gather", ("fsdp",), 10**8, 4, 1, overlapped=True)  # 1 ms of a ring
    exposed = dataclasses.replace(gather, overlapped=False, times=2)
    crossing = Collective("all-reduce", ("data",), 3_125_000, 2, 4, overlapped=False, slices=2)
    text = plan_report.text(planned(gather, exposed, crossing))
    assert (
        "time of a step, at the least: 7.00 ms (compute 1.00, exposed network 6.00, overlapped "
        "network 1.00, of the network 4.00 between slices), bound by network"
    ) in text
    assert "between slices" not in plan_report.text(planned(gather)).partition("time of")[2]


def test_slices_are_told_beside_the_axes():
    crossing = Collective("all-reduce", ("data",), 2**20, 2, 4, overlapped=False, slices=2)
    inside = dataclasses.replace(crossing, slices=1)
    lines = plan_report.text(planned(crossing, inside)).splitlines()
    assert [line.split()[1:-3] for line in lines if "all-reduce" in line] == [
        ["data,", "between", "slices"],
        ["data"],
    ]
