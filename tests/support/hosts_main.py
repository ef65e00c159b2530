"""`python -m tests.support.hosts_main RUNS FLAGS`: one process of several, for the runs in a JSON file.

Each entry has `flags`, and may have `terminate`: the step at which process 1 gets a SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
from tqdm import tqdm

from ccl_jax.runs import reporter
from tests.support import tiny_main


def terminated_at(step: int):
    """A progress bar during whose step a signal arrives."""

    class Bar(tqdm):
        def update(self, n=1):
            self.seen = getattr(self, "seen", 0) + n
            if self.seen == step:
                os.kill(os.getpid(), signal.SIGTERM)

    return lambda run, done: Bar(disable=True)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    usual = reporter.progress_bar
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        hit = "terminate" in entry and "--process_id=1" in sys.argv
        reporter.progress_bar = terminated_at(entry["terminate"]) if hit else usual
        code = tiny_main.main(["tiny_main", *entry["flags"], *sys.argv[2:]])
        print(f"exit code {code}", flush=True)
    sys.exit(code)
