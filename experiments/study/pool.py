"""Runs jobs one after another in this process, or side by side in several.

A worker does many runs, so that what JAX needs to start is paid once. Signals reach every worker, which
saves the run it is at.
"""

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ccl_jax.runs.checkpoints import Stopped
from ccl_jax.runs.config import Config
from ccl_jax.runs.signals import STOP, may_leave, stop_signals
from experiments import cli
from experiments.study import records
from experiments.study.catalogue import Job
from experiments.study.records import Record

# A fresh interpreter for each worker: a fork of a process in which JAX has started can hang.
_START = "spawn"

# Each step has large new buffers. On Linux they come sooner in huge pages, for which glibc asks only if
# told so before a process begins; docs/benchmark.md has the gain.
_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

Make = Callable[[Config, Path], Record]

# How long the main process waits for a result before it looks after signals and workers.
_PATIENCE_SECONDS = 0.5

# How a worker ends that was stopped: between runs, while compiling, and before it could catch a signal.
_STOPPED = frozenset([0, *(128 + number for number in STOP), *(-number for number in STOP)])


class Interrupted(Stopped):
    """A signal asked the study to stop; what it was at is saved.

    Args:
      signal: The signal's number.
    """

    def __init__(self, signal: int) -> None:
        Exception.__init__(self, f"stopped by signal {signal}; the same command goes on")
        self.signal = signal


def run_all(
    jobs: Sequence[Job], results: Path, workers: int = 1, make: Make | None = None
) -> Iterator[tuple[Job, Record, float]]:
    """Runs jobs.

    Args:
      jobs: What to run.
      results: The results directory.
      workers: How many run at a time; with 1 it is this process that runs them.
      make: What makes a record; default: `records.run`. With workers, a function of a module.

    Yields:
      A job, its record, and the seconds it took; in the order in which they end.

    Raises:
      Interrupted: One of `signals.STOP` came.
      OSError, ValueError: As `records.run`; the message names the run. No others are started.
    """
    make = make or records.run
    if workers == 1:
        yield from _here(jobs, results, make)
    elif jobs:
        yield from _elsewhere(jobs, results, make, min(workers, len(jobs)))


def _here(jobs: Sequence[Job], results: Path, make: Make) -> Iterator[tuple[Job, Record, float]]:
    with stop_signals() as stop:
        for job in jobs:
            yield job, *_run(job, results, make)
            if signal := stop():
                raise Interrupted(signal)


def _run(job: Job, results: Path, make: Make) -> tuple[Record, float]:
    began = time.monotonic()
    try:
        record = make(job.config, results)
    except Stopped as stopped:
        raise Interrupted(stopped.signal) from stopped
    except (OSError, ValueError) as error:
        raise type(error)(f"{job}: {error}") from error
    return record, time.monotonic() - began


def _elsewhere(
    jobs: Sequence[Job], results: Path, make: Make, workers: int
) -> Iterator[tuple[Job, Record, float]]:
    context = multiprocessing.get_context(_START)
    # Both have a thread that writes: many jobs fill a pipe, and would keep this process from seeing
    # results and signals. What nobody has read is of no use at the end.
    todo, answers = context.Queue(), context.Queue()
    todo.cancel_join_thread()
    processes = [
        context.Process(target=_work, args=(todo, answers, results, make)) for _ in range(workers)
    ]
    os.environ.setdefault(*_HUGE_PAGES)
    with stop_signals() as stop:
        try:
            for process in processes:
                process.start()
            for number, job in [*enumerate(jobs), *[(None, None)] * workers]:
                todo.put((number, job))
            left = len(jobs)
            while left:
                if signal := stop():
                    raise Interrupted(signal)
                alive = any(process.is_alive() for process in processes)
                try:
                    number, answer = answers.get(timeout=_PATIENCE_SECONDS)
                except queue.Empty:
                    if not all(p.is_alive() or p.exitcode in _STOPPED for p in processes):
                        raise OSError("a worker has died; is there enough memory?") from None
                    if not alive:  # And none has left an answer before it ended.
                        raise OSError(
                            "all workers were stopped by a signal; the same command goes on"
                        ) from None
                    continue
                if isinstance(answer, Exception):
                    raise answer
                left -= 1
                yield jobs[number], *answer
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
            for process in processes:
                process.join()


def _work(todo: Any, answers: Any, results: Path, make: Make) -> None:
    """What a worker does: runs jobs until there are no more, or nobody waits for them."""
    parent = multiprocessing.parent_process()
    with may_leave(), stop_signals() as stop:
        while not stop() and parent.is_alive():
            number, job = todo.get()
            if number is None:
                return
            try:
                answers.put((number, _run(job, results, make)))
            except Interrupted:
                return
            except (OSError, ValueError) as error:
                answers.put((number, error))
                return
            except Exception as error:
                # Not every exception can be sent to another process.
                line = cli.lacking(error)
                said = OSError(f"{job}: {type(error).__name__}: {error}")
                answers.put((number, ValueError(f"{job}: {line}") if line else said))
                return
