"""What the C library keeps: seen by the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

from ccl_jax import models
from ccl_jax.devices import memory
from ccl_jax.runs import runner

# Threads that begin after the call, as JAX's do, fill 100 MB again and again.
PROGRAM = """
import resource, sys, threading
from ccl_jax.devices import memory

def fill():
    b"x" * (100 << 20)  # More than a heap of a thread's own can hold, which is 64 MB.

def in_thread():
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()

if sys.argv[1] == "keep":
    memory.keep_freed()
in_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    in_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Page faults once the first thread is done."""
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_memory_is_kept_from_step_to_step():
    kept, given_back = faults("keep"), faults("no")
    assert kept < 2000 < given_back


@pytest.mark.parametrize(
    "name, batch_size, large",
    [
        ("digits-cnn", 32, False),
        ("lenet5", 32, False),
        ("resnet8", 32, True),
        ("vgg11", 32, True),
        ("lenet5", 256, True),
        ("resnet8", 2, False),
    ],
)
def test_large_steps_are_those_of_large_models_or_batches(name, batch_size, large, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "keep_freed", lambda: asked.append(True))
    shape = {"digits-cnn": (8, 8, 1), "lenet5": (28, 28, 1)}.get(name, (32, 32, 3))
    runner.prepare_memory(models.make(name, 10), shape, batch_size)
    assert bool(asked) is large


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(missing, monkeypatch):
    def none(name):
        raise missing

    monkeypatch.setattr(memory.ctypes, "CDLL", none)
    memory.keep_freed()
