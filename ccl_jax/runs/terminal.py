"""What a program shows of its work, and that it works where nobody looks."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Gives a program a stdout and stderr it can write to, whatever it was started with.

    Services and cron may start it without them, a terminal may close, a pipe's reader leave. Whatever
    happens to stderr is passed over: it is there for messages. Errors of stdout are raised, as results
    would be lost; characters that it does not know are written as escapes.
    """
    # A number that is free would go to the next file that is opened, and libraries write to 2.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stdout or nowhere
        sys.stderr = _Heedless(sys.stderr or nowhere)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            flush_or_drop(sys.stdout)
            sys.stdout, sys.stderr = before


def flush_or_drop(stream: TextIO) -> None:
    """Writes out what a stream holds; where that fails, all of it goes nowhere from now on."""
    try:
        stream.flush()
    except (OSError, ValueError):
        # Python would try again at its end, and complain.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class _Heedless:
    """A stream on which whatever fails is passed over.

    Args:
      stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        flush_or_drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def size() -> os.terminal_size:
    """Columns and rows of the terminal that stderr is; 80 x 24 where it does not say."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal, or closed
        columns, rows = 0, 0
    return os.terminal_size((columns or 80, rows or 24))


@contextlib.contextmanager
def waiting(text: str, every_seconds: float = 1.0) -> Iterator[None]:
    """Says on stderr what is being waited for and, when it is there, how long it took, in one line.

    On a terminal the line also tells how long it has taken so far.

    Args:
      text: Such as "compiling the step".
      every_seconds: How often the line changes on a terminal.
    """
    began, over = time.monotonic(), threading.Event()
    seconds = lambda: f"{time.monotonic() - began:.0f} s"
    say = lambda text: print(text, end="", file=sys.stderr, flush=True)

    def tick() -> None:
        while not over.wait(every_seconds):
            say(f"\r{text} ... {seconds()}")

    say(f"{text} ... ")
    on_terminal = sys.stderr.isatty()
    thread = threading.Thread(target=tick, daemon=True)
    if on_terminal:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if on_terminal:
            thread.join()
        say(f"\r{text} ... {seconds()}\n" if on_terminal else f"{seconds()}\n")
