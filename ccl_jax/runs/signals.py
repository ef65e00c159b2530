"""Signals that ask a run to stop: SIGTERM from a scheduler, SIGINT from Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Catches SIGTERM and SIGINT, so that a run can save before it leaves.

    A second signal of the kind acts as usual. Outside of the main thread nothing is caught.

    Yields:
      A function that returns the number of the signal received, or 0.
    """
    received = 0

    def note(number: int, frame: object) -> None:
        nonlocal received
        received = number
        signal.signal(number, usual[number])

    caught = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        caught = ()
    usual = {number: signal.signal(number, note) for number in caught}
    try:
        yield lambda: received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
