"""Published figures of accelerators: compute, memory and network of one JAX device.

A JAX device is a chip, except on TPU7x, where it is one of a chip's two TensorCores: its figures
are half of the chip's. All are peaks; a program reaches less.

Sources, by the names in ``Chip.source``:
  cloud: cloud.google.com/tpu/docs, the pages v4, v5e, v5p, v6e and tpu7x, section "System
    architecture". "Bidirectional ICI bandwidth per chip" counts both directions of all links, so
    ``ici`` is half of it. The scaling book's figures of a link are 10 % lower (4.5e10 and 9e10).
  jouppi: Jouppi et al. 2023, arXiv 2304.01433: six links of 50 GB/s each.
  book: jax-ml.github.io/scaling-book, part 2: 2.5e10 bytes/s of a host between slices.
  a100, h100, h200, b200: NVIDIA's datasheets of the GPU, dense (half of what is given "with
    sparsity"); NVLink's bandwidth is given for both directions, so ``ici`` is half of it.
  dgx: NVIDIA's datasheets of DGX A100 (eight NICs of 200 Gb/s for eight GPUs), DGX H100, H200 and
    B200 (eight of 400 Gb/s).
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One JAX device.

    Attributes:
      name: such as ``TPU v5e``.
      device_kinds: beginnings of ``jax.Device.device_kind``.
      flops: dense bf16 FLOP/s.
      memory: bytes of HBM.
      memory_bandwidth: bytes/s of HBM.
      ici: bytes/s sent over all links to other chips (ICI, NVLink) together, in one direction.
      axes: dimensions of the torus, with two links each; 1 for a switch, which joins any ring.
      dcn: bytes/s of the network between slices or hosts: a chip's share of its host's NICs.
      source: of the figures; the module's docstring has the names.
      devices: of a chip as it is rented, of which this is one.
    """

    name: str
    device_kinds: tuple[str, ...]
    flops: float
    memory: float
    memory_bandwidth: float
    ici: float
    axes: int
    dcn: float
    source: str
    devices: int = 1

    @property
    def ring(self) -> float:
        """Bytes/s that a chip sends in a ring over one axis, to both of its neighbors together."""
        return self.ici / self.axes


# The first match counts, so "TPU v5" stands behind "TPU v5 lite".
CHIPS: tuple[Chip, ...] = (
    Chip(
        name="TPU v4",
        device_kinds=("TPU v4",),
        flops=275e12,
        memory=32 * GIB,
        memory_bandwidth=1200e9,
        ici=300e9,
        axes=3,
        dcn=25e9 / 4,
        source="cloud; ici: jouppi; dcn: book, over 4 chips of a host",
    ),
    Chip(
        name="TPU v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        memory=16 * GIB,
        memory_bandwidth=819e9,
        ici=400e9 / 2,
        axes=2,
        dcn=6.4e12 / 8 / 256,
        source="cloud; dcn: 6.4 Tb/s of a pod over its 256 chips",
    ),
    Chip(
        name="TPU v5p",
        device_kinds=("TPU v5p", "TPU v5"),
        flops=459e12,
        memory=95 * GIB,
        memory_bandwidth=2765e9,
        ici=1200e9 / 2,
        axes=3,
        dcn=50e9 / 8,
        source="cloud; dcn: 50 Gb/s of a chip",
    ),
    Chip(
        name="TPU v6e",
        device_kinds=("TPU v6 lite", "TPU v6"),
        flops=918e12,
        memory=32 * GIB,
        memory_bandwidth=1638e9,
        ici=800e9 / 2,
        axes=2,
        dcn=100e9 / 8,
        source="cloud; dcn: 100 Gb/s of a chip",
    ),
    Chip(
        name="TPU7x",
        device_kinds=("TPU7x", "TPU v7"),
        flops=2307e12 / 2,
        memory=192 * GIB / 2,
        memory_bandwidth=7380e9 / 2,
        ici=1200e9 / 2 / 2,
        axes=3,
        dcn=100e9 / 8 / 2,
        source="cloud, halved: a device is one of two TensorCores; dcn: 100 Gb/s of a chip",
        devices=2,
    ),
    Chip(
        name="NVIDIA A100 40GB",
        device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        flops=312e12,
        memory=40e9,
        memory_bandwidth=1555e9,
        ici=600e9 / 2,
        axes=1,
        dcn=200e9 / 8,
        source="a100; dcn: dgx",
    ),
    Chip(
        name="NVIDIA A100 80GB",
        device_kinds=("NVIDIA A100",),
        flops=312e12,
        memory=80e9,
        memory_bandwidth=2039e9,
        ici=600e9 / 2,
        axes=1,
        dcn=200e9 / 8,
        source="a100; dcn: dgx",
    ),
    Chip(
        name="NVIDIA H100 PCIe",
        device_kinds=("NVIDIA H100 PCIe",),
        flops=756e12,
        memory=80e9,
        memory_bandwidth=2000e9,
        ici=128e9 / 2,
        axes=1,
        dcn=200e9 / 8,
        source="h100; ici: PCIe 5, without bridges; dcn: assumed half of dgx, none is published",
    ),
    Chip(
        name="NVIDIA H100 SXM",
        device_kinds=("NVIDIA H100",),
        flops=989e12,
        memory=80e9,
        memory_bandwidth=3350e9,
        ici=900e9 / 2,
        axes=1,
        dcn=400e9 / 8,
        source="h100; dcn: dgx",
    ),
    Chip(
        name="NVIDIA H200",
        device_kinds=("NVIDIA H200",),
        flops=989e12,
        memory=141e9,
        memory_bandwidth=4800e9,
        ici=900e9 / 2,
        axes=1,
        dcn=400e9 / 8,
        source="h200; dcn: dgx",
    ),
    Chip(
        name="NVIDIA B200",
        device_kinds=("NVIDIA B200",),
        flops=2250e12,
        memory=180e9,
        memory_bandwidth=8000e9,
        ici=1800e9 / 2,
        axes=1,
        dcn=400e9 / 8,
        source="b200, eight in a DGX; dcn: dgx",
    ),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a ``jax.Device.device_kind``, or None where it is not in the table (CPUs)."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.device_kinds)), None)
