"""What a CPU's steps allocate again and again: whether the C library keeps it from step to step.

A step of a large network has buffers of many megabytes, new in every step. glibc takes such from the
system and gives them back: of ResNet-20 300,000 page faults a step, a quarter of its time. It can be
told to keep them, in one heap for all threads, which is slower where a step is small: threads wait for
each other there.
"""

import contextlib
import ctypes

# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

# From so many bytes on, that one agent's forward pass makes of its batch, keeping is the faster way.
LARGE = 1 << 24


def keep_freed() -> None:
    """Lets glibc keep what is freed; of no effect elsewhere, or on threads that are there already."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # It is another C library.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
