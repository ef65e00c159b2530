"""Signals that ask a run to stop, from schedulers, terminals and people."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Ctrl-C; a terminal that closes; and what schedulers send before they kill (Slurm's --signal and
# submitit USR1 or USR2, a limit of processor time XCPU, most of them TERM).
STOP = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)

# Who sends a second one of these wants no more waiting. The others come again by themselves: SIGXCPU
# every second, SIGHUP from the terminal and from its shell.
_URGENT = (signal.SIGTERM, signal.SIGINT)

# What `_listen` says at a signal, with the process's end; None while there is something to save.
_last_words: Callable[[int], str] | None = None

# The thread that runs `_listen`, in `may_leave`. It is started where it is needed: glibc would share out
# the heap of a thread that was there before JAX's (`ccl_jax.devices.memory`).
_listener: threading.Thread | None = None


class _Note:
    """A handler that takes down the last signal, with those that were there before it."""

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Any] = {}

    def __call__(self, number: int, frame: object) -> None:
        self.received = number
        if number in _URGENT:
            signal.signal(number, self._usual(number))

    def _usual(self, number: int) -> Any:
        """What a signal does where nobody takes it down."""
        before = self.before[number]
        if isinstance(before, _Note):
            return before._usual(number)
        # Only SIGINT is taken from who ignores it, and who sends it twice means it.
        return signal.default_int_handler if before == signal.SIG_IGN else before


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Catches the signals of `STOP`, so that a run can save before it leaves.

    A second SIGTERM or SIGINT acts as usual. Outside of the main thread nothing is caught. What is
    ignored stays so, as SIGHUP under nohup; but for SIGINT, which shells ignore for all that they start
    in the background. What one hears, the one around it hears when it is left, and the next ones inside
    of that begin with it: a signal may come when a run has nothing more to stop, but others follow.

    Yields:
      A function that returns the number of the signal received, or 0.
    """
    note = _Note()
    if threading.current_thread() is threading.main_thread():
        around = [each for each in map(signal.getsignal, STOP) if isinstance(each, _Note)]
        note.received = max((each.received for each in around), default=0)
        for number in STOP:
            if number == note.received and number in _URGENT:
                continue  # A second one.
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                note.before[number] = signal.signal(number, note)
    try:
        yield lambda: note.received
    finally:
        for number, handler in note.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(outer := note.before.get(note.received), _Note):
            outer(note.received, None)


@contextlib.contextmanager
def may_leave() -> Iterator[None]:
    """Lets `leaving` end this process; for the outermost function of a program.

    Python acts on a signal when the main thread is back from whatever it has called, which for XLA's
    compiler can take minutes. The number of the signal is written to a pipe at once, though, and here
    a thread reads it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _listener
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    outer, _listener = _listener, threading.Thread(target=_listen, args=(ours,), daemon=True)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)
        if _listener.ident is not None:
            _listener.join()
        _listener = outer
        os.close(ours)


@contextlib.contextmanager
def leaving(last_words: Callable[[int], str]) -> Iterator[None]:
    """While there is nothing to save, a signal ends the process at once, with exit code 128 + signal.

    Of no effect but in `may_leave` and `stop_signals`: a library does not end its caller's process.

    Args:
      last_words: Given the number of the signal, what to write to stderr.
    """
    global _last_words
    _last_words = last_words
    if _listener is not None and _listener.ident is None:
        _listener.start()
    try:
        yield
    finally:
        _last_words = None


def _listen(pipe: int) -> None:
    while received := os.read(pipe, 1):
        number, last_words = received[0], _last_words
        if last_words is not None and number in STOP:
            # Not through sys.stderr, which the main thread may hold.
            with contextlib.suppress(OSError):
                os.write(2, last_words(number).encode(errors="backslashreplace"))
            os._exit(128 + number)
