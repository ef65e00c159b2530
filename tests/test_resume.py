"""A run that was interrupted ends exactly as one that was not: every family, any moment, real kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, IMAGE, TinyModel

from ccl_jax import algorithms, compression, graphs, loop, training
from ccl_jax.checkpoint import Autosave, Checkpoints, Stopped
from ccl_jax.data import augment, partition
from ccl_jax.data.dataset import Dataset
from ccl_jax.data.feeds import InMemory
from ccl_jax.evaluation import Evaluator
from ccl_jax.faults import Faults
from ccl_jax.metrics import plain
from ccl_jax.network import Network
from ccl_jax.progress import Progress

MODEL = TinyModel()
AGENTS, EPOCHS = 3, 3
# Uneven parts: in the last step of an epoch some agents have nothing left.
PARTITION = partition.Partition("uneven", tuple(np.split(np.arange(40), [10, 26])))

# One of every family, on a graph that it takes.
FAMILIES = {
    "dsgdm-n": "ring",
    "qg-dsgdm-n": "ring",
    "qg-dsgdm-n-ema": "ring",
    "qg-adam": "ring",
    "adam": "ring",
    "all-reduce": "ring",
    "isolated": "ring",
    "fedavg": "star",
    "relaysgd": "chain",
    "d2": "ring",
    "exact-diffusion": "ring",
    "decentlam": "ring",
    "dsgt": "ring",
    "update-tracking": "ring",
    "gut": "ring",
    "momentum-tracking": "ring",
    "comp-ngc": "ring",
    "comp-cga": "ring",
    "sgp": "exponential",
}


def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *IMAGE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 60).astype(np.int32)
    names = tuple("abcd")
    return Dataset(
        "tiny", images[:40], labels[:40], images[40:], labels[40:], CLASSES, (0.5,), (0.3,), 255.0,
        names,
    )  # fmt: skip


DATA = dataset()
EVALUATOR = Evaluator(MODEL, DATA)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs that run for a few steps are not worth optimising."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Experiment:
    """A small run of one method, in this process."""

    def __init__(
        self,
        name="qg-dsgdm-n",
        graph="ring",
        compressor="none",
        lambdas=(0, 0),
        augmentation="none",
        faults=None,
    ):
        lr = 0.05
        self.algorithm = algorithms.make(name)
        topology = graphs.make(graph, AGENTS, stochastic=algorithms.lookup(name).stochastic)
        network = Network(topology, compressor=compression.make(compressor), faults=faults)
        objective = training.Objective(CLASSES, *lambdas)
        rate = lambda t: lr / (1 + t.astype(jnp.float32))
        step = training.make_step(MODEL, self.algorithm, network, objective, rate)
        self.feed = InMemory(DATA, PARTITION, batch_size=4, seed=1)
        # Jitted, so that all runs of an experiment share one trace.
        transform = augment.make(augmentation)
        self.step = jax.jit(loop.make_data_step(step, self.feed, DATA, transform))

        state = training.init_state(MODEL, self.algorithm, network, IMAGE, jax.random.key(3))
        self.first = training.with_network_memory(
            self.step, state, self.feed.constants, self.feed.item
        )

    def start(self) -> training.TrainState:
        """The first state, in buffers of its own."""
        return jax.tree.map(jnp.copy, self.first)

    def run(self, state, start=Progress(), **callbacks):  # noqa: B008
        """The end of the run: parameters, and rows without their seconds."""
        rows = list(start.rows)
        models = lambda s: EVALUATOR(self.algorithm.models(s.params, s.algorithm), {})
        callbacks = {"on_epoch": rows.append} | callbacks
        state, _ = loop.fit(
            state, self.step, self.feed, epochs=EPOCHS, eval_every=2, evaluate=models, start=start,
            **callbacks,
        )  # fmt: skip
        return state, without_seconds(rows)


def without_seconds(rows) -> list[dict]:
    keep = lambda row: {k: v for k, v in row.items() if "second" not in k}
    return [keep(plain(row)) for row in rows]


def same(a: training.TrainState, b: training.TrainState) -> None:
    a, b = (s._replace(key=jax.random.key_data(s.key)) for s in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


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
        assert resumed_rows == rows
        shutil.rmtree(path / str(moment))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_resumes_to_the_bit(tmp_path, name):
    # Four steps an epoch; any moment but the very end, another one for every family.
    moment = 1 + list(FAMILIES).index(name) * 5 % 11
    check_resume(Experiment(name, FAMILIES[name]), tmp_path, moment)


def test_every_moment_resumes_to_the_bit(tmp_path):
    """Inside and at the end of epochs, with contrastive losses and compression, which remember."""
    experiment = Experiment(compressor="sign", lambdas=(0.1, 0.1), augmentation="flip-crop")
    check_resume(experiment, tmp_path, *range(1, 12))


def test_a_network_with_faults_resumes_to_the_bit(tmp_path):
    faults = Faults(drop=0.3, drop_burst=3, offline=0.2, offline_length=2, straggle=0.3, delay=2)
    check_resume(Experiment(lambdas=(0.1, 0.1), faults=faults), tmp_path, 3, 6, 8)


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
        experiment.run(experiment.start(), on_progress=Autosave(saved, EPOCHS, stop=stop))
    assert stopped.value.signal == signal.SIGTERM
    resumed, resumed_rows = experiment.run(*Checkpoints(tmp_path).restore(experiment.start()))
    same(resumed, whole)
    assert resumed_rows == rows


def test_autosave_keeps_its_times(tmp_path):
    experiment = Experiment()
    with Checkpoints(tmp_path, keep=99) as saved:
        experiment.run(experiment.start(), on_progress=Autosave(saved, EPOCHS, epochs=2))
    assert saved.steps() == [8, 12]  # after the second epoch, and at the end
    with Checkpoints(tmp_path / "always", keep=99) as saved:
        experiment.run(experiment.start(), on_progress=Autosave(saved, EPOCHS, minutes=1e-9))
    assert saved.steps() == list(range(1, 13))


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


# What follows starts real processes, on the digits.

MAIN = [sys.executable, str(Path(__file__).with_name("tiny_main.py")), "--algorithm=qg-dsgdm-n"]


def environment(tmp_path_factory) -> dict[str, str]:
    cache = tmp_path_factory.getbasetemp() / "jax-cache"
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts runs that save after every step they can; ends those that a failed test left."""
    processes = []

    def launch(workdir, *more):
        process = subprocess.Popen(
            [*MAIN, f"--workdir={workdir}", "--checkpoint_minutes=1e-9", *more],
            env=environment(tmp_path_factory),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(workdir), 0)
    return workdir


def finish(process, code) -> str:
    """What a process that ended with this code said on stderr."""
    said = process.communicate()[1]
    assert process.returncode == code, said
    return said


def newest(workdir) -> int:
    return max(Checkpoints(workdir / "checkpoints").steps(), default=0)


def wait_for_step(process, workdir, step) -> None:
    while newest(workdir) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def check_equal(workdir, other) -> None:
    rows = [
        without_seconds(json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines())
        for d in (workdir, other)
    ]
    assert rows[0] == rows[1]
    step = newest(workdir)
    assert step == newest(other)
    contents = [Checkpoints(d / "checkpoints").arrays(step) for d in (workdir, other)]
    jax.tree.map(np.testing.assert_array_equal, *contents)


def test_kill_9_and_resume_again_and_again(launch, whole, tmp_path):
    workdir = tmp_path / "run"
    for kills, step in enumerate((2, 40)):
        process = launch(workdir, *["--resume"] * (kills > 0))
        wait_for_step(process, workdir, step)
        process.send_signal(signal.SIGKILL)
        finish(process, -signal.SIGKILL)
    assert "goes on after step" in finish(launch(workdir, "--resume"), 0)
    check_equal(workdir, whole)


def test_sigterm_saves_and_a_second_run_is_refused_meanwhile(launch, whole, tmp_path):
    workdir = tmp_path / "run"
    first = launch(workdir)
    wait_for_step(first, workdir, 3)
    first.send_signal(signal.SIGSTOP)  # alive, and in no hurry
    assert "another run is at work" in finish(launch(workdir, "--resume"), 2)
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert "stopped by signal 15 after step" in finish(first, 143)
    assert not (workdir / "summary.json").exists()
    finish(launch(workdir, "--resume"), 0)
    check_equal(workdir, whole)
