"""What a result depends on beside its settings: JAX's own, and the processor."""

import os
import re
import subprocess
import sys

import jax

from ccl_jax.runs import environment

MADE = {
    "jax": "1",
    "device": "cpu x 1",
    "jax_settings": {"jax_enable_x64": True},
    "xla_flags": "",
    "instruction_set": "x86_64 AVX2",
    "command": ["a"],
}


def test_settings_that_differ_from_the_default_are_told():
    found = environment.jax_settings()
    # Those of conftest.py.
    assert found["jax_numpy_dtype_promotion"] == "strict"
    assert found["jax_numpy_rank_promotion"] == "raise"
    assert "jax_enable_x64" not in found and "jax_default_prng_impl" not in found
    assert not {"jax_num_cpu_devices", "jax_compilation_cache_dir"} & set(found)
    before = jax.config.values["jax_default_prng_impl"]
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        changed = environment.jax_settings()
    finally:
        jax.config.update("jax_default_prng_impl", before)
    assert changed == found | {"jax_default_prng_impl": "rbg"}


def test_settings_of_the_environment_are_told_too():
    untold = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    program = "from ccl_jax.runs import environment; print(environment.jax_settings())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=untold | {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_DEBUG_NANS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'jax_default_prng_impl': 'rbg', 'jax_enable_x64': True}\n"


def test_defaults_that_nobody_can_tell_are_unknown(monkeypatch):
    for program in ("/nowhere/python", "/bin/false"):
        environment.ask_defaults.cache_clear()
        environment._default_jax_settings.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", program)
            assert environment.jax_settings() is None
    environment.ask_defaults.cache_clear()
    environment._default_jax_settings.cache_clear()
    assert environment.jax_settings() is not None


def test_the_instruction_set_is_the_machines():
    assert re.fullmatch(r"\S+( (SSE4_2|AVX\w*|AMX\w*))?", environment.instruction_set())


def test_differences():
    assert environment.differences(MADE, MADE | {"command": ["b"]}) == []
    now = MADE | {"xla_flags": "--xla_x", "jax_settings": {"jax_default_prng_impl": "rbg"}}
    assert environment.differences(MADE, now) == [
        "jax_default_prng_impl default -> rbg",
        "jax_enable_x64 True -> default",
        "xla_flags default -> --xla_x",
    ]
    own = [MADE | {"own_code": {"mine.py": digest}} for digest in ("a1", "b2")]
    assert environment.differences(*own) == ["mine.py a1 -> b2"]
    assert environment.differences(own[0], own[0]) == []
    # An older run tells less.
    assert environment.differences(MADE, own[0]) == []
    assert environment.differences({"jax": "0"}, MADE) == ["jax 0 -> 1"]
