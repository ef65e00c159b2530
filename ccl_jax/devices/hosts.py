"""Hosts: several processes, each with devices of its own, that train as one.

Every process runs the same program on its own part of the agents (`ccl_jax.devices.parallel`). What they
have to agree on, such as when to stop, they tell each other here. With one process all of it is free.

The first process writes files, and the others read them: the run directory must be one that all see.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    find: bool = False,
    timeout_seconds: int = 300,
) -> bool:
    """Joins the other processes, before JAX has started; with neither coordinator nor `find`, nothing.

    Args:
      coordinator: HOST:PORT at which process 0 can be reached and no other program listens.
      num_processes: How many there are.
      process_id: Which one this is, 0 to num_processes - 1.
      find: Let JAX find all three, as it can on Slurm, Open MPI, Kubernetes and Cloud TPU.
      timeout_seconds: How long to wait until all are there.

    Returns:
      Whether this is one of several processes that have found each other (or of one that was asked to).

    Raises:
      ValueError: The arguments do not fit together, JAX has started already, or no cluster is found.
      ConnectionError: The port is taken.
      SystemExit: Not all processes were there in time; ends the process at once, with a line on
        stderr and exit code 1.
    """
    given = (coordinator, num_processes, process_id)
    if find and given != (None, None, None):
        raise ValueError(
            "distributed finds coordinator, num_processes and process_id by itself; give those or "
            "distributed, not both"
        )
    if not find:
        if given == (None, None, None):
            return False
        _check(coordinator, num_processes, process_id)
    if jax.distributed.is_initialized():
        return True
    # Signals are ours: a run that is asked to stop saves first (`ccl_jax.runs.signals`).
    jax.config.update("jax_enable_preemption_service", False)
    where = coordinator or "their coordinator"
    # JAX would abort, with a stack trace: our own clock runs out before that.
    clock = threading.Timer(timeout_seconds, _give_up, [where, timeout_seconds])
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(*given, initialization_timeout=timeout_seconds + 60)
    except ValueError as error:
        raise ValueError(
            f"distributed finds no cluster here ({error}); give coordinator, num_processes and "
            "process_id"
        ) from None
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise ValueError("hosts can be joined only before JAX has started") from None
        raise ConnectionError(
            f"no coordinator can be started at {where} ({str(error).splitlines()[0]}); give another "
            "port, to all processes"
        ) from None
    finally:
        clock.cancel()
    return True


def count() -> int:
    """The number of processes; does not start JAX where none have been joined."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints; starts JAX if others were joined."""
    return count() == 1 or jax.process_index() == 0


def tell(text: str) -> None:
    """Prints a line, in the first process."""
    if is_first():
        print(text)


def note(text: str) -> None:
    """Prints a line on stderr, in the first process."""
    if is_first():
        print(text, file=sys.stderr)


def gather(value: np.ndarray) -> np.ndarray:
    """What each process has, given to all, which must all call it.

    Args:
      value: `[...]` of the same shape and dtype everywhere.

    Returns:
      `[processes, ...]`, to the bit.
    """
    return _begin_gather(np.asarray(value))()


def _begin_gather(value: np.ndarray) -> Callable[[], np.ndarray]:
    """`gather`, begun; what it returns waits for the others."""
    if count() == 1:
        return lambda: value[None]
    mesh = _one_device_a_process()
    # As bytes, since JAX would cut 64 bits to 32.
    raw = np.frombuffer(value.tobytes(), np.uint8)[None]
    spread = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    everything = whole(jax.make_array_from_process_local_data(spread, raw))
    return lambda: np.asarray(everything).view(value.dtype).reshape(-1, *value.shape)


def largest(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes, which must all call it."""
    if count() == 1:
        return values
    return tuple(gather(np.asarray(values, np.int64)).max(axis=0).tolist())


def ask_largest(values: Callable[[], tuple[int, ...]]) -> Callable[[], tuple[int, ...]]:
    """`largest` of what `values()` returns, without waiting for devices that are at work.

    Returns:
      A function with the answer. With one process `values` is called then; with several it has been
      called already, so that the answer is there when steps that are begun meanwhile are under way.
    """
    if count() == 1:
        return values
    answer = _begin_gather(np.asarray(values(), np.int64))
    return lambda: tuple(answer().max(axis=0).tolist())


def union(numbers: Collection[int]) -> set[int]:
    """The numbers, from 0 on, that any process has; all processes must call it."""
    (size,) = largest(len(numbers))
    own = np.full(max(1, size), -1, np.int64)
    own[: len(numbers)] = sorted(numbers)
    return set(gather(own).ravel().tolist()) - {-1}


def agree(values: Mapping[str, Any]) -> None:
    """Makes sure that all processes have the same values, which JSON knows; all must call it.

    Raises:
      ValueError: They do not; in every process, with what differs.
    """
    if count() == 1:
        return
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    (size,) = largest(len(text))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = text
    first, *others = (json.loads(row.tobytes().rstrip(b"\0")) for row in gather(padded))
    for process, other in enumerate(others, 1):
        different = [
            f"{name} is {first.get(name)!r} and {other.get(name)!r}"
            for name in first | other
            if first.get(name) != other.get(name)
        ]
        if different:
            raise ValueError(
                f"processes 0 and {process} would not train the same: {'; '.join(different)}; start "
                "all with the same flags, files and checkpoints"
            )


def whole(tree: PyTree) -> PyTree:
    """Arrays that are spread over processes, as arrays that each can read; all must call it."""
    if count() == 1:
        return tree
    return _replicate(jax.tree.leaves(tree)[0].sharding.mesh)(tree)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all: nobody waits for one that has left.

    For work without any communication, such as checks and reading files.

    Raises:
      ValueError: It failed in another process, which says why.
    """
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    (failed,) = largest(int(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("another process has failed; its own message says why")


def leave(code: int) -> None:
    """Ends this process after a failure, which others may know nothing of; of no effect if alone.

    They wait in some communication, and are ended by JAX: at once where the first process leaves, else
    when it is missed, after less than two minutes.

    Args:
      code: Exit code.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(2)  # Those that fail for the same reason can say so before they are ended.
    os._exit(code)  # A usual exit would wait for the others.


def _give_up(where: str, seconds: int) -> None:
    print(
        f"error: not all processes found each other at {where} within {seconds} seconds; check that "
        "all were started, with the same coordinator, and that it can be reached",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    names = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in names.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given too; several processes need all of "
            f"{', '.join(names)}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator is {coordinator!r}; it must be HOST:PORT with a port of 1 to 65535, as "
            "localhost:9911"
        )
    if num_processes < 1:
        raise ValueError(f"num_processes is {num_processes}; it must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id is {process_id}; it must be 0 to {num_processes - 1}, one for each of "
            f"num_processes {num_processes}"
        )


@functools.cache
def _one_device_a_process() -> Mesh:
    first: dict[int, jax.Device] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return Mesh(np.array([first[process] for process in sorted(first)]), ("hosts",))


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
