"""kill -9 at random moments of a run of every family: it ends as if nothing had happened.

    pytest tests/runs/test_kill.py --kills=20

A run lasts twelve steps and saves after each, so that most kills hit while a checkpoint is written.
By default a few families are killed once; with --kills above 1, all of them so many times.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from tests.support import forks, kill_worker
from tests.support.small_run import FAMILIES, STEPS, same_rows, without_seconds

QUICK = ("qg-dsgdm-n",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        names = FAMILIES if metafunc.config.getoption("kills") > 1 else QUICK
        metafunc.parametrize("family", names)


class Runs:
    """Starts runs as processes."""

    def __init__(self, context) -> None:
        self._context = context

    def start(self, name: str, workdir: Path, victim: bool):
        """The process, and a connection that tells the number of steps done."""
        ours, theirs = self._context.Pipe()
        arguments = (name, workdir, theirs, victim)
        process = self._context.Process(target=kill_worker.train, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def finish(self, name: str, workdir: Path) -> RunDirectory:
        """Runs to the end."""
        process, steps = self.start(name, workdir, victim=False)
        process.join()
        steps.close()
        assert process.exitcode == 0
        return RunDirectory(workdir)


@pytest.fixture(scope="module")
def runs(request):
    return Runs(forks.context(request.config.cache.mkdir("jax-forks")))


def kill(process) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_at(moment: float, process, steps) -> None:
    """Kills a victim that has come to this step, a part of 50 ms later, in which it does another two."""
    done, part = divmod(moment, 1)
    while steps.recv() < done:
        pass
    time.sleep(0.05 * part)
    kill(process)


def check_equal(a: RunDirectory, b: RunDirectory) -> None:
    """Last parameters, state and metrics files are equal to the bit."""
    same_rows(without_seconds(a.read_metrics()), without_seconds(b.read_metrics()))
    saved = [Checkpoints(d.checkpoints) for d in (a, b)]
    assert [max(s.steps()) for s in saved] == [STEPS, STEPS]
    first, second = (s.arrays(STEPS) for s in saved)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_run_that_is_killed_again_and_again_ends_the_same(family, runs, tmp_path, request):
    whole = runs.finish(family, tmp_path / "whole")
    kills = request.config.getoption("kills")
    draw = random.Random(family)
    cut = 0
    for moment in sorted(draw.uniform(0, STEPS) for _ in range(kills)):
        kill_at(moment, *runs.start(family, tmp_path / "run", victim=True))
        cut += (tmp_path / "run" / "checkpoints" / ".partial").exists()
    check_equal(runs.finish(family, tmp_path / "run"), whole)
    print(f"{family}: a checkpoint that was being written lay there after {cut} of {kills} kills")
    # As after most: that there is none after 20 is not to be expected.
    assert cut > 0 or kills < 20


def test_a_kill_in_the_middle_of_a_checkpoint_and_of_a_line(runs, tmp_path):
    """Stops the process at the partial checkpoints it sees, until one is still there when it rests."""
    whole = runs.finish("dsgdm-n", tmp_path / "whole")
    run = RunDirectory(tmp_path / "run")
    process, steps = runs.start("dsgdm-n", run.path, victim=True)
    partial = run.checkpoints / ".partial"
    for _ in range(100_000):
        if partial.exists():
            os.kill(process.pid, signal.SIGSTOP)
            if partial.exists() and Checkpoints(run.checkpoints).steps():
                break
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.0005)
    kill(process)
    steps.close()
    assert partial.exists()
    assert max(Checkpoints(run.checkpoints).steps()) < STEPS
    # The metrics file is appended to, and a system can die with half a line on the disk.
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    check_equal(runs.finish("dsgdm-n", run.path), whole)
    assert not partial.exists()
