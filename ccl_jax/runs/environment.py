"""What a result depends on beside its settings and versions: how JAX is set, and the processor."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

# JAX's settings that flags of ours decide, which are recorded as such, and where compiled programs lie.
_OUR_SETTINGS = frozenset(
    [
        "jax_num_cpu_devices",
        "jax_enable_preemption_service",
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
)

# Instruction sets by the names of XLA's --xla_cpu_max_isa, each with the one before, and what Linux
# calls them. XLA rounds differently with each.
_INSTRUCTION_SETS = {
    "sse4_2": "SSE4_2",
    "avx": "AVX",
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_tile": "AMX",
    "amx_fp16": "AMX_FP16",
}


def processor() -> str:
    """What it can do, one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.machine()
    )


def jax_settings() -> dict[str, Any] | None:
    """JAX's settings that are not the default ones, whoever set them; None if unknown."""
    defaults = _default_jax_settings()
    if defaults is None:
        return None
    return {
        name: value
        for name, value in _comparable(jax.config.values).items()
        if name not in _OUR_SETTINGS and value != defaults.get(name)
    }


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As another process can be told them."""
    return json.loads(json.dumps(dict(settings), default=str))


@functools.cache
def ask_defaults() -> subprocess.Popen | None:
    """Begins to find out JAX's default settings, of which it keeps no record; None if that fails.

    A process to which nobody has said anything imports JAX, which takes a second: whoever needs
    `jax_settings` soon asks early, and does other work meanwhile.
    """
    program = "import jax, json; print(json.dumps(dict(jax.config.values), default=str))"
    untold = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    try:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=untold,
        )
    except OSError:
        return None


@functools.cache
def _default_jax_settings() -> dict[str, Any] | None:
    """JAX's settings in a process to which nobody has said anything; None if unknown."""
    if (asked := ask_defaults()) is None:
        return None
    try:
        answer, _ = asked.communicate(timeout=60)
        return json.loads(answer)
    except subprocess.TimeoutExpired:
        asked.kill()
        return None
    except ValueError:
        return None


@functools.cache
def instruction_set() -> str:
    """The processor's, as `x86_64 AVX512_BF16`; without the second word where that is not known."""
    flags = processor().split()
    known = [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]
    return " ".join([platform.machine(), *known[-1:]])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may keep two runs from being equal to the bit, as "NAME BEFORE -> NOW".

    Args:
      before: What `directory.made_with` said of the first; what it does not tell is passed over, as an
        older version tells less.
      now: The same of the second.
    """
    before, now = (
        {name: value for name, value in made.items() if name in before and name != "command"}
        for made in (before, now)
    )
    for part in ("jax_settings", "own_code", "data"):
        before, now = (made | (made.pop(part, None) or {}) for made in (before, now))
    # No flags at all are the default ones.
    show = lambda made, name: "default" if made.get(name, "") == "" else made[name]
    return [
        f"{name} {show(before, name)} -> {show(now, name)}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
