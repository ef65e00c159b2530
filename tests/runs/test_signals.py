"""Signals ask a run to stop, and end what has nothing to save, whatever it is doing."""

import os
import signal
import threading
import time

import pytest

from ccl_jax.runs.signals import STOP, leaving, may_leave, stop_signals
from tests.support import forks


@pytest.fixture(autouse=True)
def not_under_nohup():
    """However pytest was started: what it ignores would stay so here and in processes begun here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def heard():
    """SIGINT as in a terminal: a process that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_all_that_schedulers_send_are_caught(heard):
    assert {s.name for s in STOP} == {
        "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU",
    }  # fmt: skip
    for number in STOP:
        before = signal.getsignal(number)
        with stop_signals() as stop:
            assert stop() == 0
            os.kill(os.getpid(), number)
            assert stop() == number
            # A second SIGTERM or SIGINT acts as usual; the others come again by themselves.
            assert (signal.getsignal(number) == before) == (number in (15, 2))
        assert signal.getsignal(number) == before


def test_what_is_ignored_stays_so():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (1, 2)}
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)  # As under nohup.
            assert stop() == 0
            os.kill(os.getpid(), signal.SIGINT)  # As for what a shell starts in the background.
            assert stop() == signal.SIGINT
            # Who sends it twice means it.
            assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(connection, stderr, inside: bool) -> None:
    """Says when it is at work, which no handler of a signal ends: they return, and it goes on."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # As `not_under_nohup`; forks come from a server.
    with stderr.open("w") as file:
        os.dup2(file.fileno(), 2)
    with may_leave(), stop_signals() as stop:
        with leaving(lambda number: f"left by {number}\n"):
            if inside:
                connection.send("at work")
                time.sleep(1000)
        connection.send("at work")
        while not stop():
            time.sleep(0.01)
        os._exit(7)


@pytest.fixture(scope="module")
def context(request):
    # Not a fork of this process: its threads may hold locks that nobody would give back to the child.
    return forks.context(request.config.cache.mkdir("jax-forks"))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("number", STOP, ids=lambda number: number.name)
def test_it_ends_at_once_only_with_nothing_to_save(number, inside, context, tmp_path):
    ours, theirs = context.Pipe()
    stderr = tmp_path / "err"
    process = context.Process(target=work, args=(theirs, stderr, inside))
    process.start()
    assert ours.recv() == "at work"
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (128 + number if inside else 7)
    assert stderr.read_text() == (f"left by {int(number)}\n" if inside else "")


def test_a_library_does_not_end_its_callers_process():
    with stop_signals() as stop, leaving(lambda number: "gone"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop() == signal.SIGTERM


def test_handlers_are_given_back_also_after_an_error():
    before = [signal.getsignal(number) for number in STOP]
    with pytest.raises(KeyError), stop_signals():
        assert [signal.getsignal(number) for number in STOP] != before
        raise KeyError
    assert [signal.getsignal(number) for number in STOP] == before


def test_a_signal_is_for_the_context_around_and_for_what_follows_in_it():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as outer:
        with stop_signals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (inner(), outer()) == (signal.SIGTERM, 0)
            # A second one acts as usual, however many there are.
            assert signal.getsignal(signal.SIGTERM) == before
        assert outer() == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
        with stop_signals() as following:
            assert following() == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    with stop_signals() as stop:
        assert stop() == 0


def test_another_thread_catches_nothing():
    before, seen = [signal.getsignal(number) for number in STOP], []

    def work():
        with stop_signals() as stop:
            seen.append((stop(), [signal.getsignal(number) for number in STOP]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_no_thread_is_there_before_jax_starts():
    """glibc would give it a heap of its own, which JAX's threads then share."""
    with may_leave():
        before = threading.active_count()
        with leaving(lambda number: ""):
            assert threading.active_count() == before + 1
    assert threading.active_count() == before
