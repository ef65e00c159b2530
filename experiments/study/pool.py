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
from experiments import cli, extensions
from experiments.study import records
from experiments.study.catalogue import Job, identity
from experiments.study.records import Record

# A fresh interpreter for each worker: a fork of a process in which JAX has started can hang.
_START = "spawn"

# Each step has large new buffers. On Linux they come sooner in huge pages, for which glibc asks only if
# told so before a process begins; docs/benchmark.md has the gain.
_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

Make = Callable[[Config, Path], Record]
Pack = list[Job]

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
    jobs: Sequence[Job],
    results: Path,
    workers: int = 1,
    make: Make | None = None,
    pack_seeds: bool = False,
) -> Iterator[tuple[Job, Record, float]]:
    """Runs jobs.

    Args:
      jobs: What to run.
      results: The results directory.
      workers: How many run at a time; with 1 it is this process that runs them.
      make: What makes a record; default: `records.run`. With workers, a function of a module.
      pack_seeds: Run those that differ in their seed alone together, by `records.run_together`.

    Yields:
      A job, its record, and the seconds it took; in the order in which they end.

    Raises:
      Interrupted: One of `signals.STOP` came.
      OSError, ValueError: As `records.run`; the message names the run. No others are started.
    """
    make = make or records.run
    packs = _packs(jobs) if pack_seeds else [[job] for job in jobs]
    if workers == 1:
        yield from _here(packs, results, make)
    elif jobs:
        yield from _elsewhere(packs, results, make, min(workers, len(packs)))


def _packs(jobs: Sequence[Job]) -> list[Pack]:
    """Jobs that differ in their seed alone, in the order of their first ones."""
    packs: dict[str, Pack] = {}
    for job in jobs:
        packs.setdefault(identity(job.config.replace(seed=0)), []).append(job)
    return list(packs.values())


def _here(packs: Sequence[Pack], results: Path, make: Make) -> Iterator[tuple[Job, Record, float]]:
    with stop_signals() as stop:
        for pack in packs:
            yield from _run(pack, results, make)
            if signal := stop():
                raise Interrupted(signal)


def _run(pack: Pack, results: Path, make: Make) -> list[tuple[Job, Record, float]]:
    """Each job with its record and its share of the seconds."""
    began = time.monotonic()
    try:
        if len(pack) == 1:
            found = [make(pack[0].config, results)]
        else:
            found = records.run_together([job.config for job in pack], results)
    except Stopped as stopped:
        raise Interrupted(stopped.signal) from stopped
    except (OSError, ValueError) as error:
        # Of no narrower kind: some of those are not made of a text alone.
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{pack[0]}: {extensions.blame(error) or error}") from error
    seconds = (time.monotonic() - began) / len(pack)
    return [(job, record, seconds) for job, record in zip(pack, found, strict=True)]


def _elsewhere(
    packs: Sequence[Pack], results: Path, make: Make, workers: int
) -> Iterator[tuple[Job, Record, float]]:
    context = multiprocessing.get_context(_START)
    # Both have a thread that writes: many jobs fill a pipe, and would keep this process from seeing
    # results and signals. What nobody has read is of no use at the end.
    todo, answers = context.Queue(), context.Queue()
    todo.cancel_join_thread()
    files = tuple(extensions.LOADED)  # A worker adds to its own list of them.
    processes = [
        context.Process(target=_work, args=(todo, answers, results, make, files))
        for _ in range(workers)
    ]
    os.environ.setdefault(*_HUGE_PAGES)
    with stop_signals() as stop:
        try:
            for process in processes:
                process.start()
            for pack in [*packs, *[None] * workers]:
                todo.put(pack)
            left = len(packs)
            while left:
                if signal := stop():
                    raise Interrupted(signal)
                alive = any(process.is_alive() for process in processes)
                try:
                    answer = answers.get(timeout=_PATIENCE_SECONDS)
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
                yield from answer
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
            for process in processes:
                process.join()


def _work(todo: Any, answers: Any, results: Path, make: Make, files: Sequence[str]) -> None:
    """What a worker does: runs jobs until there are no more, or nobody waits for them."""
    parent = multiprocessing.parent_process()
    with may_leave(), stop_signals() as stop:
        try:
            for file in files:
                extensions.load(file)
        except ValueError as error:  # It was changed since this process has read it.
            answers.put(error)
            return
        while not stop() and parent.is_alive():
            pack = todo.get()
            if pack is None:
                return
            try:
                answers.put(_run(pack, results, make))
            except Interrupted:
                break
            except (OSError, ValueError) as error:
                answers.put(error)
                return
            except Exception as error:
                # Not every exception can be sent to another process.
                line = cli.lacking(error) or extensions.blame(error)
                said = OSError(f"{pack[0]}: {type(error).__name__}: {error}")
                answers.put(ValueError(f"{pack[0]}: {line}") if line else said)
                return
        # Nobody reads any more, and a record that fills the pipe would keep this process from ending;
        # it is in the directory of its run.
        answers.cancel_join_thread()
