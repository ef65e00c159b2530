"""Chips that one can compile for although they are not here.

libtpu holds the compiler for TPUs, JAX's CUDA plugin that for NVIDIA's GPUs. Neither needs a chip;
`jax.experimental.topologies` describes it.
"""

import importlib.util
import os
import re
from importlib import metadata

import jax

# What libtpu would otherwise ask the machine for, complaining on stderr where there is no TPU. The lock
# would keep two programs from compiling side by side.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Generations of which one host can have up to eight chips.
_EIGHT_A_HOST = ("v5e", "v6e")

# Without a GPU nothing can be timed, so that XLA chooses among cuDNN's algorithms by rules.
_WITHOUT_A_GPU = "--xla_gpu_autotune_level=0"
_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# As XLA describes one to itself.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def chips(target: str) -> list[jax.Device]:
    """The chips that a target names.

    Args:
      target: `tpu:GENERATION:SHAPE` for a slice of TPUs, as `tpu:v5e:2x4`, or `gpu:h100:NUMBER`.

    Raises:
      ValueError: It is not of these forms, its compiler is not installed or does not know it.
    """
    if found := re.fullmatch(r"tpu:(\w+):(\d+(?:x\d+){1,2})", target):
        return _tpus(target, *found.groups())
    if found := re.fullmatch(r"gpu:h100:([1-9]\d?)", target):
        return _gpus(int(found[1]))
    raise ValueError(
        f"compile_for is {target!r}; it must be tpu:GENERATION:SHAPE, as tpu:v5e:2x4, or "
        "gpu:h100:NUMBER, as gpu:h100:8"
    )


def compiler(target: str) -> dict[str, str]:
    """Its name and version."""
    name = "libtpu" if target.startswith("tpu") else _plugin()
    return {name: metadata.version(name)}


def _tpus(target: str, generation: str, shape: str) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compile_for needs libtpu, which is not installed: pip install 'ccl_jax[aot]'"
        )
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # All else is done here, also where a TPU is at hand.
    from jax.experimental import topologies  # Loads libtpu, which reads the environment.

    sides = [int(side) for side in shape.split("x")]
    options = {}
    if generation in _EIGHT_A_HOST and len(sides) == 2 and sides[0] * sides[1] <= 8:
        options = {"chips_per_host_bounds": (*sides, 1)}
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation}:{shape}", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"compile_for is {target!r}, and libtpu {metadata.version('libtpu')} does not know it "
            f"({error}); it may be tpu:v5e:2x4, tpu:v6e:2x2, tpu:v5p:2x2x2 ..."
        ) from None
    if len({tuple(device.coords) for device in devices}) < len(devices):
        raise ValueError(
            f"compile_for is {target!r}, whose chips are several devices each, of which JAX makes no "
            "mesh; take v5e, v5p or v6e"
        )
    return list(devices)


def _gpus(number: int) -> list[jax.Device]:
    _plugin()
    os.environ["XLA_FLAGS"] = f"{_WITHOUT_A_GPU} {os.environ.get('XLA_FLAGS', '')}"
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda", target_config=_H100, topology=f"1x1x{number}"
    )
    return list(described.devices)


def _plugin() -> str:
    """Of those of CUDA, the one that is here."""
    for name in _PLUGINS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ValueError(
        "compile_for needs JAX's CUDA plugin, which is not installed: pip install 'jax[cuda12]'"
    )
