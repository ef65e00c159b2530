"""Memory of the process: what one step frees, the next one gets."""

import contextlib
import ctypes
import platform

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
    """Lets glibc keep what is freed instead of giving it back to the kernel; elsewhere of no effect.

    XLA's programs for CPUs take the buffers of every step anew, 1.3 GB with ResNet-20 and 16 agents, and
    a kernel that hands out and clears pages of 4 KiB costs a fifth of the processor's time
    (docs/benchmark.md). The process then holds on to the most that it ever needed.

    To be called before JAX starts: memory of threads that run already stays as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)  # Large pieces come from the heap, too,
        mallopt(_ARENA_MAX, 1)  # of which there is one for all threads,
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # and which does not shrink.
