"""Processes for tests, forked from one that has everything imported, so that they start in a moment.

They are processes like others, with real signals, exit codes and limits.
"""

import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest
from tqdm import tqdm

from ccl_jax.runs import environment
from tests.support import tiny_main

ROOT = Path(__file__).parents[2]
environment.jax_settings()  # Asked for once, before any process is forked.


@functools.cache
def context(cache: Path) -> multiprocessing.context.ForkServerContext:
    """The way to start processes; compiled programs are kept in `cache`.

    That is a folder of their own: a process that is killed can leave a damaged entry.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.kill_worker", "tests.support.forks"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        forkserver.ensure_running()
    return context


def run_main(argv: Sequence[str], stderr: Path) -> None:
    """Body of a process: `tiny_main.py` with these flags, and what it says on stderr in a file."""
    with stderr.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    # The bar's own lock is a semaphore, which a process that is killed would leave behind.
    tqdm.set_lock(threading.RLock())
    sys.exit(tiny_main.main(["tiny_main", *argv]))
