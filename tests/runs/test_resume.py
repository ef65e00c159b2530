"""A run that was interrupted ends exactly as one that was not: every family, any moment, real kills."""

import contextlib
import functools
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms
from ccl_jax.network.faults import Faults
from ccl_jax.runs import runner
from ccl_jax.runs.checkpoints import Autosave, Checkpoints, Stopped
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.training import loop
from ccl_jax.training.progress import Progress
from ccl_jax.training.schedules import AveragingRate
from tests.support import forks, tiny_main
from tests.support.small_run import EPOCHS, FAMILIES, Experiment, same, same_rows, without_seconds


def check_resume(experiment: Experiment, path: Path, *moments: int) -> None:
    """Runs to the end, saving at some moments on the way; goes on from each of them in a new run."""
    with Checkpoints(path, keep=99) as saved:

        def save(state, progress):
            if progress.step in moments:
                saved.save(state, progress)

        whole, rows = experiment.run(experiment.start(), on_progress=save)
    for moment in reversed(moments):
        state, progress = Checkpoints(path).restore(experiment.start())
        assert progress.step == moment and moment < whole.step
        resumed, resumed_rows = experiment.run(state, progress)
        same(resumed, whole)
        same_rows(resumed_rows, rows)
        shutil.rmtree(path / str(moment))


# With state of different kinds; the others are marked as slow.
KINDS = ("relaysgd", "dsgt", "comp-ngc")
NAMES = [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_resumes_to_the_bit(tmp_path, name):
    # Four steps an epoch; any moment but the very end, another one for every family.
    moment = 1 + list(FAMILIES).index(name) * 5 % 11
    check_resume(Experiment(name, FAMILIES[name]), tmp_path, moment)


def test_every_moment_resumes_to_the_bit(tmp_path):
    """Inside and at the end of epochs, with contrastive losses and compression, which remember."""
    experiment = Experiment(compressor="sign", lambdas=(0.1, 0.1), augmentation="flip-crop")
    check_resume(experiment, tmp_path, *range(1, 12))


@pytest.mark.parametrize("name, coins", [("k-gt", None), ("proxskip", 3)])
def test_rounds_of_local_steps_resume_to_the_bit(tmp_path, name, coins):
    check_resume(Experiment(name, local_steps=3, coins=coins), tmp_path, 4, 6, 8)


@pytest.mark.parametrize("name", ["motef", "adagossip"])
def test_compressed_trackers_and_a_growing_gossip_rate_resume_to_the_bit(tmp_path, name):
    rate = AveragingRate(0.1, 1.5, epoch_steps=4)
    talk = {"compressor": "top-k:0.3", "compression_start": "zero", "local_steps": 2}
    check_resume(Experiment(name, gossip_rate=rate, **talk), tmp_path, 1, 2, 7)


def test_prototypes_that_wait_for_the_next_exchange_resume_to_the_bit(tmp_path):
    """Also between exchanges, which are in every second step."""
    experiment = Experiment("dsgd", feature_losses=(("prototype", 0.5),), local_steps=2)
    check_resume(experiment, tmp_path, 1, 2, 7)
    plain = Experiment("dsgd", local_steps=2)
    end, _ = plain.run(plain.start())
    other, _ = experiment.run(experiment.start())
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), end.params, other.params)
    assert any(jax.tree.leaves(changed))


def test_models_that_moon_contrasts_with_resume_to_the_bit(tmp_path):
    """The mixed model and the one before it are kept from one exchange to the next; with SAM."""
    chosen = (("moon", 0.5), ("logit_distillation", 0.1))
    experiment = Experiment("dsgd", feature_losses=chosen, local_steps=3, sam_rho=0.1)
    check_resume(experiment, tmp_path, 2, 3, 7)
    kept = experiment.first.kept["models"]
    assert set(kept) == {"previous_features", "mixed_features"}


@pytest.mark.slow
def test_a_network_with_faults_resumes_to_the_bit(tmp_path):
    faults = Faults(drop=0.3, drop_burst=3, offline=0.2, offline_length=2, straggle=0.3, delay=2)
    check_resume(Experiment(lambdas=(0.1, 0.1), faults=faults), tmp_path, 3, 6, 8)


def test_noise_on_messages_resumes_to_the_bit(tmp_path):
    experiment = Experiment("dsgdm-n", lambdas=(0.1, 0.1), message_noise=0.01)
    check_resume(experiment, tmp_path, 1, 7)
    quiet, loud = Experiment("dsgdm-n", lambdas=(0.1, 0.1)), experiment
    ends = [each.run(each.start())[0].params for each in (quiet, loud)]
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), *ends)))


def test_exact_averages_from_an_epoch_on_resume_to_the_bit(tmp_path):
    experiment = Experiment("qg-dsgdm-n", lambdas=(0.1, 0.1), average_from=6)
    check_resume(experiment, tmp_path, 5, 6, 9)


def test_every_method_belongs_to_a_family_that_is_tested():
    modules = {method.build.__module__ for method in algorithms.REGISTRY.values()}
    ours = {m for m in modules if m.startswith("ccl_jax.")}
    assert ours == {algorithms.REGISTRY[name].build.__module__ for name in FAMILIES}


def test_a_signal_saves_and_leaves_after_the_step(tmp_path):
    experiment = Experiment()
    whole, rows = experiment.run(experiment.start())
    steps = 0

    def stop() -> int:
        nonlocal steps
        steps += 1
        return signal.SIGTERM if steps == 7 else 0

    with Checkpoints(tmp_path) as saved, pytest.raises(Stopped, match="--resume") as stopped:
        autosave = Autosave(saved, EPOCHS, stop=stop)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert stopped.value.signal == signal.SIGTERM
    resumed, resumed_rows = experiment.run(*Checkpoints(tmp_path).restore(experiment.start()))
    same(resumed, whole)
    same_rows(resumed_rows, rows)


def test_autosave_keeps_its_times(tmp_path):
    experiment = Experiment()
    with Checkpoints(tmp_path, keep=99) as saved:
        autosave = Autosave(saved, EPOCHS, epochs=2)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert saved.steps() == [8, 12]  # after the second epoch, and at the end
    with Checkpoints(tmp_path / "always", keep=99) as saved:
        autosave = Autosave(saved, EPOCHS, minutes=1e-9)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert saved.steps() == list(range(1, 13))


def test_what_was_asked_within_an_epoch_does_not_answer_for_its_end(tmp_path):
    """A signal that came in between is heard at the end of the epoch."""
    experiment, asked = Experiment(), []
    state = experiment.start()

    def stop() -> int:
        asked.append(len(asked))
        return signal.SIGTERM if len(asked) == 2 else 0

    with Checkpoints(tmp_path) as saved:
        autosave = Autosave(saved, EPOCHS, stop=stop)
        assert not autosave.due()()
        with pytest.raises(Stopped, match="after step 4"):
            autosave(state, Progress(step=4, epoch=2))
    assert saved.steps() == [4] and asked == [0, 1]


def spoil(experiment: Experiment, steps) -> None:
    """Makes the loss infinite in some steps."""
    plain_step = experiment.step

    def step(state, constants, item):
        bad = jnp.isin(state.step, jnp.array(steps))
        new, metrics = plain_step(state, constants, item)
        ruin = lambda x: jnp.where(bad, jnp.nan, x)
        return new._replace(params=jax.tree.map(ruin, new.params)), metrics._replace(
            cross_entropy=ruin(metrics.cross_entropy)
        )

    experiment.step = step


def test_a_step_that_is_not_finite_is_skipped_on_demand():
    experiment = Experiment()
    states = {}

    def remember(state, progress):
        states[progress.step] = jax.tree.map(np.array, state.params)

    spoil(experiment, [1])
    state, rows = experiment.run(experiment.start(), skip_divergence=True, on_progress=remember)
    jax.tree.map(np.testing.assert_array_equal, states[1], states[2])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert rows[0]["skipped_steps"] == 1 and "skipped_steps" not in rows[1]
    assert np.isfinite(rows[0]["cross_entropy"])
    assert state.step == 12


def test_an_epoch_that_is_skipped_altogether_stops_the_run():
    experiment = Experiment()
    spoil(experiment, [4, 5, 6, 7])
    with pytest.raises(loop.Diverged, match=r"step 8, agent 0 .*cross-entropy nan.*gradient norm"):
        experiment.run(experiment.start(), skip_divergence=True)


# What follows starts real processes: `tiny_main.py`, on the digits.


class Main:
    """A run that saves after every step it can.

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
