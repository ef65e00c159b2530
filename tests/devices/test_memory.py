import platform
import subprocess
import sys

import pytest

# Page faults of a program whose result has 128 MB: the least of some calls, as other threads take memory,
# too. (Pieces under 64 MB may come from arenas that threads had before, which do shrink.)
PROGRAM = """
import resource, sys
if "keep" in sys.argv:
    from ccl_jax.devices import memory
    memory.keep_freed()
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
double = jax.jit(lambda x: x * 2)
x = jnp.ones(2**25)
found = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    double(x).block_until_ready()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_program_freed_is_there_for_the_next_call():
    def faults(*args):
        made = subprocess.run(
            [sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, check=True
        )
        return int(made.stdout)

    # 128 MB are 32,768 pages.
    assert faults("keep") < 1000 < 30000 < faults()
