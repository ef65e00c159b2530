import platform
import subprocess
import sys

import pytest

# Page faults of the fourth call of a program that needs some 64 MB of memory in each.
PROGRAM = """
import resource, sys
if "keep" in sys.argv:
    from ccl_jax.devices import memory
    memory.keep_freed()
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
double = jax.jit(lambda x: jnp.sort(x) * 2)
x = jnp.ones(2**23)
for _ in range(3):
    double(x).block_until_ready()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
double(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_program_freed_is_there_for_the_next_call():
    faults = lambda *args: int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, check=True
        ).stdout
    )
    # A result of 32 MB has 8,192 pages.
    assert faults("keep") < 1000 < 8000 < faults()
