"""Signals to this process: caught once, and given back."""

import os
import signal
import threading

import pytest

from ccl_jax.runs.signals import stop_signals

BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_a_second_one_acts_as_usual(number):
    usual = signal.getsignal(number)
    came = []
    signal.signal(number, lambda *_: came.append(number))
    try:
        ours = signal.getsignal(number)
        with stop_signals() as stop:
            assert stop() == 0
            os.kill(os.getpid(), number)
            assert stop() == number and came == []
            os.kill(os.getpid(), number)
            assert stop() == number and came == [number]
        assert signal.getsignal(number) is ours
    finally:
        signal.signal(number, usual)


def test_handlers_are_given_back_also_after_an_error():
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(KeyError), stop_signals():
        assert [signal.getsignal(number) for number in BOTH] != before
        raise KeyError
    assert [signal.getsignal(number) for number in BOTH] == before


def test_another_thread_catches_nothing():
    before, seen = [signal.getsignal(number) for number in BOTH], []

    def work():
        with stop_signals() as stop:
            seen.append((stop(), [signal.getsignal(number) for number in BOTH]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
