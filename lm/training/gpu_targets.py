"""Describes NVIDIA GPUs to XLA, so that it can compile for a GPU that is not present. Values come from data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from lm.costs import CHIPS, GIB


@dataclass(frozen=True)
class GpuTarget:
    """The properties that XLA's compiler reads, as listed in NVIDIA's architecture papers and the CUDA C++ Guide."""

    name: str  # also the key in CHIPS, which holds the memory size
    capability: int  # major version
    processors: int
    lanes: int  # float32 lanes per multiprocessor
    clock_ghz: float
    bandwidth: int  # bytes/s
    cache: int  # size of the L2 cache in bytes
    shared: int  # bytes of shared memory per multiprocessor

    def text(self) -> str:
        """Returns the description as an XLA GpuTargetConfigProto in text format."""
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared,
            "shared_memory_per_block_optin": self.shared - 1024,
            "threads_per_core_limit": 2048,
            "core_count": self.processors,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": round(CHIPS[self.name].memory_gib * GIB),
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        fields = "\n".join(f"  {name}: {value}" for name, value in info.items())
        capability = f"cuda_compute_capability {{ major: {self.capability} }}"
        rest = (
            f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 10 }}\ndevice_description_str: "{self.name}"'
        )
        return f"gpu_device_info {{\n{fields}\n  {capability}\n}}\n{rest}\n"


GPU_TARGETS = {
    "a100": GpuTarget("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 2_039 * 10**9, 40 * 2**20, shared=164 * 1024),
    "h100": GpuTarget("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 3_352 * 10**9, 50 * 2**20, shared=228 * 1024),
    "h200": GpuTarget("NVIDIA H200", 9, 132, 128, 1.98, 4_800 * 10**9, 50 * 2**20, shared=228 * 1024),
}
