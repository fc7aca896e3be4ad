"""Devices to compile for that are not in this machine. Needs jax-cuda13-plugin of jax's version, and no GPU."""

from typing import Any

import jax
from jax.experimental import topologies


def h100s(nodes: int, devices: int) -> list[Any]:
    """Compile-only H100s, so many on each of so many nodes: their sharding makes `jit(...).lower().compile()` theirs.

    Lower under `jax.sharding.use_abstract_mesh`, from where Pallas reads the target. XLA finds ptxas on PATH.
    """
    jax.config.update("jax_platforms", "cpu")  # the CUDA plugin registers, and looks for no GPU
    shape = f"{nodes}x1x{devices}"  # hosts x processes x devices
    return topologies.get_topology_desc("h100", "cuda", topology=shape, target_config=H100).devices


H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
