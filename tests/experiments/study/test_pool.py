"""Workers share jobs, report results as they come, and end with the study."""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ccl_jax.runs import packed
from ccl_jax.runs.checkpoints import Stopped
from ccl_jax.runs.signals import leaving, stop_signals
from experiments import extensions
from experiments.study import catalogue, pool
from tests.support import tiny_main  # noqa: F401 (registers the model "mlp")
from tests.support.studies import SMALL


@pytest.fixture
def make_jobs(tmp_path):
    """Makes the jobs of a small study with these seeds."""

    def make_jobs(seeds=(0, 1)):
        path = tmp_path / "mine.toml"
        path.write_text(SMALL)
        return catalogue.load(str(path), seeds=tuple(seeds)).jobs()

    return make_jobs


def fake_run(config, results):
    if config.seed == 2:
        raise ValueError("no such thing")
    return {"id": catalogue.identity(config)}


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_share_the_jobs_and_report_errors(make_jobs, tmp_path, monkeypatch):
    # Forked, as these jobs do not use JAX: fresh interpreters take seconds to start.
    monkeypatch.setattr(pool, "_START", "fork")
    jobs = make_jobs()
    found = {str(job): record["id"] for job, record, _ in pool.run_all(jobs, tmp_path, 2, fake_run)}
    assert found == {str(job): job.identity for job in jobs}
    bad = make_jobs([2])
    with pytest.raises(ValueError, match="seed 2: no such thing"):
        list(pool.run_all(bad, tmp_path, 2, fake_run))


def test_errors_that_are_not_made_of_a_text_alone_are_one_line_too(make_jobs, tmp_path):
    def make(config, results):
        return json.loads("")

    with pytest.raises(ValueError, match="seed 0: Expecting value"):
        list(pool.run_all(make_jobs(), tmp_path, make=make))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_run_the_users_own_files(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    file = tmp_path / "mine.py"
    mark = "Path(__file__).with_name(f'ran-{os.getpid()}').touch()"
    file.write_text(f"import os\nfrom pathlib import Path\n\n{mark}\n")
    monkeypatch.setattr(extensions, "LOADED", [str(file)])
    list(pool.run_all(make_jobs(), tmp_path, 2, fake_run))
    ran = {path.name for path in tmp_path.glob("ran-*")}
    assert len(ran) == 2 and f"ran-{os.getpid()}" not in ran
    # One that has been spoiled since it was read here.
    file.write_text("x = 1 / 0")
    with pytest.raises(ValueError, match=r"mine\.py, line 1: ZeroDivisionError"):
        list(pool.run_all(make_jobs(), tmp_path, 2, fake_run))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_results_are_seen_while_many_jobs_wait(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    jobs = make_jobs(range(10, 500))
    # More than a pipe holds.
    assert sum(len(pickle.dumps(job)) for job in jobs) > 500_000
    first = next(pool.run_all(jobs, tmp_path, 2, slow_run))
    assert first[0] in jobs and len(list(tmp_path.glob("made-*"))) < 50
    assert not multiprocessing.active_children()


def slow_run(config, results):
    (results / f"made-{catalogue.identity(config)}").touch()
    time.sleep(0.3)
    return {"id": catalogue.identity(config)}


def see_environment(config, results):
    # What the process was started with, which os.environ need not be.
    return {"id": Path("/proc/self/environ").read_text()}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=0"])
def test_workers_ask_for_huge_pages_unless_told_otherwise(make_jobs, tmp_path, monkeypatch, given):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    jobs = make_jobs()[:1]
    ((_, record, _),) = pool.run_all(jobs, tmp_path, 2, see_environment)
    assert f"GLIBC_TUNABLES={given or 'glibc.malloc.hugetlb=1'}" in record["id"].split("\0")


def die(config, results):
    os._exit(9)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_worker_that_dies_ends_the_study(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    with pytest.raises(OSError, match="a worker has died"):
        list(pool.run_all(make_jobs(), tmp_path, 2, die))


def stop_itself(config, results):
    raise Stopped(signal.SIGTERM, step=0)


def compiling(config, results):
    """As XLA at work: a signal's handler returns, and it goes on."""
    with leaving(lambda number: ""):
        (results / f"begun-{config.seed}").touch()
        time.sleep(1000)


def stop_while_compiling(config, results):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    compiling(config, results)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("stopped", [stop_itself, stop_while_compiling])
def test_workers_that_were_stopped_alone_end_the_study(stopped, make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    with pytest.raises(OSError, match="all workers were stopped by a signal"):
        list(pool.run_all(make_jobs(), tmp_path, 2, stopped))


def no_memory(config, results):
    np.zeros(2**60, np.uint8)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_memory_that_a_worker_cannot_have_is_one_line(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    with pytest.raises(ValueError, match=r"seed 0: not enough memory \(.*take fewer agents"):
        list(pool.run_all(make_jobs([0]), tmp_path, 2, no_memory))


def until_stopped(config, results):
    with stop_signals() as stop:
        while not stop():
            time.sleep(0.01)
        raise Stopped(stop(), step=0)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("make", [until_stopped, compiling])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_reaches_all_workers(number, make, make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    began, busy = time.monotonic(), multiprocessing.get_context("fork").Semaphore(0)

    def seen(config, results):
        busy.release()
        return make(config, results)

    def send():
        # Forked workers have this process's handlers until they have their own.
        for _ in range(2):
            busy.acquire()
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(pool.Interrupted, match="the same command goes on") as stopped:
        list(pool.run_all(make_jobs(), tmp_path, 2, seen))
    assert stopped.value.signal == number and time.monotonic() - began < 20
    assert not multiprocessing.active_children()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_record_that_fills_the_pipe_keeps_no_worker_from_ending(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_START", "fork")
    busy = multiprocessing.get_context("fork").Semaphore(0)

    def long(config, results):
        busy.release()
        time.sleep(2)  # It is past its last chance to stop.
        return {"id": str(config.seed) * 1_000_000}

    def send():
        for _ in range(2):
            busy.acquire()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(15)
        for process in multiprocessing.active_children():
            process.kill()
            killed.append(process)

    killed = []
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with pytest.raises(pool.Interrupted):
        list(pool.run_all(make_jobs(), tmp_path, 2, long))
    assert not killed


def test_runs_that_differ_in_their_seed_are_packed(make_jobs, tmp_path, monkeypatch):
    """Records are those of separate runs up to rounding, and those that are there are read."""
    jobs = make_jobs((0, 1))
    made, packs, execute = {}, [], packed.execute

    def counting(runs):
        packs.append([run.config.seed for run in runs])
        return execute(runs)

    monkeypatch.setattr(packed, "execute", counting)
    for name, pack in (("apart", False), ("packed", True)):
        found = list(pool.run_all(jobs, tmp_path / name, pack_seeds=pack))
        made[name] = {job.identity: record for job, record, _ in found}
        assert all(job.identity == record["id"] for job, record, _ in found)
        assert packs == ([[0, 1], [0, 1]] if pack else [])
    assert made["packed"].keys() == made["apart"].keys() and len(jobs) == 4
    for job in jobs:
        together, apart = (made[name][job.identity] for name in ("packed", "apart"))
        for name in ("settings", "seed", "status", "cost", "samples_by_agent_and_class"):
            assert together[name] == apart[name]
        for name, value in apart["summary"].items():
            if "bytes" in name or name in ("steps", "parameters"):
                assert together["summary"][name] == value
            elif "accuracy" in name:
                assert together["summary"][name] == pytest.approx(value, abs=2 / 360)
    again = list(pool.run_all(jobs, tmp_path / "packed", pack_seeds=True))
    assert {job.identity: record for job, record, _ in again} == made["packed"]
    assert len(packs) == 2
