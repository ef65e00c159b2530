"""Runs as processes that are killed, stopped, without disk, or go back: they end as whole ones do."""

import contextlib
import functools
import json
import os
import re
import resource
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ccl_jax.runs import runner
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from tests.support import forks, tiny_main
from tests.support.small_run import same_rows, without_seconds


class Main:
    """A process with a run on the digits (`tiny_main`) that saves after every step it can.

    Args:
      context: What `forks.context` returned.
      workdir: Its directory. What it says on stderr lies beside it.
      flags: Other flags.
    """

    def __init__(self, context, workdir: Path, *flags: str) -> None:
        argv = ["--algorithm=qg-dsgdm-n", "--checkpoint_minutes=1e-9", *flags]
        self.workdir = workdir
        self._stderr = workdir.with_name(f"{workdir.name}-{id(self)}.txt")
        self._process = context.Process(
            target=forks.run_main, args=([f"--workdir={workdir}", *argv], self._stderr), daemon=True
        )
        self._process.start()

    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def finish(self, code: int) -> str:
        """What a process that ended with this code said on stderr."""
        self._process.join()
        said = self._stderr.read_text()
        assert self._process.exitcode == code, said
        return said

    def wait_for_words(self, words: str) -> None:
        while not self._stderr.exists() or words not in self._stderr.read_text():
            assert self.alive(), self._stderr.read_text()
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        while newest(self.workdir) < step:
            assert self.alive(), self._stderr.read_text()
            time.sleep(0.02)

    def limit_files(self, size: int) -> None:
        """From now on, files cannot grow beyond so many bytes."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def launch(request):
    return functools.partial(Main, forks.context(request.config.cache.mkdir("jax-forks")))


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    launch(workdir).finish(0)
    return workdir


def newest(workdir) -> int:
    return max(Checkpoints(workdir / "checkpoints").steps(), default=0)


def check_equal(workdir, other) -> None:
    rows = [RunDirectory(d).read_metrics() for d in (workdir, other)]
    same_rows(*map(without_seconds, rows))
    step = newest(workdir)
    assert step == newest(other)
    contents = [Checkpoints(d / "checkpoints").arrays(step) for d in (workdir, other)]
    jax.tree.map(np.testing.assert_array_equal, *contents)


@pytest.mark.slow
def test_kill_9_and_resume_again_and_again(launch, whole, tmp_path):
    workdir = tmp_path / "run"
    for kills, step in enumerate((2, 40)):
        run = launch(workdir, *["--resume"] * (kills > 0))
        run.wait_for_step(step)
        run.send(signal.SIGKILL)
        run.finish(-signal.SIGKILL)
    assert "goes on after step" in launch(workdir, "--resume").finish(0)
    check_equal(workdir, whole)


def test_sigterm_saves_and_a_second_run_is_refused_meanwhile(launch, whole, tmp_path):
    workdir = tmp_path / "run"
    first = launch(workdir)
    first.wait_for_step(3)
    first.send(signal.SIGSTOP)  # alive, and in no hurry
    assert "another run is at work" in launch(workdir, "--resume").finish(2)
    first.send(signal.SIGTERM)
    first.send(signal.SIGCONT)
    assert "stopped by signal 15 after step" in first.finish(143)
    assert not (workdir / "summary.json").exists()
    launch(workdir, "--resume").finish(0)
    check_equal(workdir, whole)


def test_a_signal_ends_a_run_that_compiles(launch, tmp_path):
    """The compilation would take a minute, and handlers of Python's run after it only."""
    run = launch(workdir := tmp_path / "run", "--model=slow", "--progress")
    run.wait_for_words("compiling the training step ... ")
    run.send(signal.SIGUSR1)
    said = run.finish(128 + signal.SIGUSR1)
    # It has not ended, or there would be its time.
    assert said.endswith(" ... \nerror: stopped by signal 10 after step 0; --resume goes on\n")
    assert (workdir / "config.json").exists() and newest(workdir) == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_of_two_that_start_together_one_runs(launch, whole, tmp_path):
    workdir = tmp_path / "run"
    both = [launch(workdir) for _ in range(2)]
    while not (refused := [run for run in both if not run.alive()]):
        time.sleep(0.02)
    (refused,) = refused
    assert re.search("another run is at work|already holds a run", refused.finish(2))
    both.remove(refused)
    (run,) = both
    run.wait_for_step(1)
    run.send(signal.SIGINT)
    assert "stopped by signal 2 after step" in run.finish(130)
    launch(workdir, "--resume").finish(0)
    check_equal(workdir, whole)


def test_a_full_disk_is_one_clear_line_and_the_run_can_go_on(launch, whole, tmp_path):
    run = launch(workdir := tmp_path / "run")
    run.wait_for_step(2)
    run.limit_files(3000)
    said = run.finish(1)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    steps = Checkpoints(workdir / "checkpoints").steps()
    assert steps and f"complete ones are there of steps {steps}" in line
    assert re.search(r"checkpoint of step \d+ could not be written to .*too large", line)
    assert "Traceback" not in said
    launch(workdir, "--resume").finish(0)
    check_equal(workdir, whole)


@pytest.mark.slow
def test_a_rollback_recovers(launch, tmp_path):
    """Decay by lr * 100 = 10 weights makes them 9 times larger in each step; by 1, it does not."""
    flags = ["--algorithm=dsgd", "--lr=0.1", "--weight_decay=100", "--schedule=constant"]
    flags += ["--on_divergence=rollback", "--checkpoint_every=1", "--checkpoint_minutes=0"]
    said = launch(tmp_path / "run", *flags).finish(0)
    assert said.count("no longer finite") == 1
    assert "going back to the last checkpoint (of steps [15, 30])" in said
    assert "goes on after step 30" in said
    rows = RunDirectory(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows] == list(range(15, 91, 15))
    assert [row.get("rollbacks") for row in rows] == [None, None, 1, 1, 1, 1]
    assert [row["lr"] for row in rows] == pytest.approx(2 * [0.1] + 4 * [0.01])
    # As good as guessing, with such a decay.
    assert rows[1]["cross_entropy"] > 1e9 and 0 < rows[-1]["cross_entropy"] < 2.5


@pytest.mark.slow
def test_a_comparison_goes_on_between_and_within_its_runs(tmp_path, monkeypatch, capsys):
    def compare(folder: str, *flags: str) -> int:
        common = ["--epochs=1", "--eval_every=1", "--devices=1", "--checkpoint_minutes=1e-9"]
        return tiny_main.main(["x", f"--workdir={tmp_path / folder}", *common, *flags])

    assert compare("whole") == 0
    execute = runner.execute

    def leave_before_the_second(run):
        if run.config.algorithm == "qg-dsgdm-n":
            raise KeyboardInterrupt
        return execute(run)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "execute", leave_before_the_second)
        assert compare("run") == 130
    (tmp_path / "run" / "qg-dsgdm-n").mkdir()  # as if killed when it had just been made

    @contextlib.contextmanager
    def stop_after_seven():
        # Asked twice before the first step: where the run begins, and before it compiles.
        answers = iter([0] * (2 + 6) + [signal.SIGTERM])
        yield lambda: next(answers)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "stop_signals", stop_after_seven)
        assert compare("run", "--resume") == 143
    assert "after step 7;" in capsys.readouterr().err
    assert not (tmp_path / "run" / "ccl").exists()
    assert compare("run", "--resume") == 0
    assert "dsgdm-n has ended already" in capsys.readouterr().err
    for name in ("dsgdm-n", "qg-dsgdm-n", "ccl"):
        check_equal(tmp_path / "run" / name, tmp_path / "whole" / name)
    summaries = [
        json.loads((tmp_path / d / "comparison.json").read_text()) for d in ("run", "whole")
    ]
    for name in summaries[1]:
        same_rows(*(without_seconds([s[name] | {"made_with": None}]) for s in summaries))
