"""Programs run where nobody looks, say what they wait for, and end with one line."""

import importlib
import io
import os
import signal
import subprocess
import sys
import termios
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.runs import terminal
from experiments import cli

ROOT = Path(__file__).parents[2]
MAINS = ("digits", "cifar10", "cifar100", "fmnist", "imagenette", "imagenet")
TOOLS = (
    "study", "report", "methods", "topologies", "prepare", "benchmark", "parity", "presets",
    "predict", "export", "compare",
)  # fmt: skip


@pytest.fixture
def deaf():
    """A stream whose reader has left."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stream:
        yield stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # It can be closed.


def test_who_no_longer_reads_ends_a_program_in_silence(deaf, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", deaf)
    assert cli.guard(lambda: print("result")) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""
    deaf.flush()  # What nobody reads does not fail once more at the end of Python.


def test_a_stderr_that_nobody_reads_ends_nothing(deaf, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", deaf)

    def body() -> None:
        for _ in range(3):
            print("progress", file=sys.stderr, flush=True)
        print("result")

    assert cli.guard(body) == 0
    assert capsys.readouterr().out == "result\n"
    assert sys.stderr is deaf


def test_a_program_without_streams_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    done = []

    def body() -> None:
        print("result", file=sys.stdout)
        print("progress", file=sys.stderr)
        assert not sys.stderr.isatty()
        done.append(True)
        raise ValueError("wrong")

    assert cli.guard(body) == 2 and done
    assert sys.stdout is None and sys.stderr is None


def test_names_that_cannot_be_encoded_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.guard(lambda: print("caf\udce9 \N{PLUS-MINUS SIGN}")) == 0
    assert raw.getvalue() == b"caf\\udce9 \\xb1\n"


def test_a_wait_is_one_line_with_its_time(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.waiting("compiling it"):
        assert sys.stderr.getvalue() == "compiling it ... "
    assert sys.stderr.getvalue() == "compiling it ... 0 s\n"


def test_a_wait_is_counted_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with terminal.waiting("compiling it", every_seconds=0.001):
        while stream.getvalue().count("\r") < 2:
            time.sleep(0.001)
    first, second, *_, last = stream.getvalue().split("\r")
    assert (first, second, last) == ("compiling it ... ", "compiling it ... 0 s", second + "\n")


def test_a_terminal_that_does_not_say_its_size_has_a_usual_one(monkeypatch):
    """As one that a program made, such as `script` where there is none."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert os.get_terminal_size(theirs) == (0, 0) and terminal.size() == (80, 24)
        termios.tcsetwinsize(theirs, (40, 132))
        assert terminal.size() == (132, 40)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert terminal.size() == (80, 24)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.zeros(2**60, np.uint8),
        lambda: jax.block_until_ready(jnp.zeros(2**50, jnp.uint8)),
    ],
    ids=["numpy", "jax"],
)
def test_memory_that_cannot_be_had_is_one_line(ask, capsys):
    assert cli.guard(ask) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: not enough memory (")
    assert "take fewer agents" in line


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "variable, value, found",
    [
        ("JAX_PLATFORMS", "nowhere", "Backend 'nowhere' is not in the list of known backends"),
        pytest.param(
            "JAX_PLATFORMS",
            "cuda",
            "set JAX_PLATFORMS=cpu",
            marks=pytest.mark.skipif(
                any(find_spec(f"jax_cuda{k}_plugin") for k in (12, 13)), reason="can start"
            ),
        ),
        ("JAX_ENABLE_X64", "maybe", "invalid truth value 'maybe'"),
    ],
)
def test_a_jax_that_cannot_start_is_one_line(variable, value, found, tmp_path):
    workdir = tmp_path / "run"
    done = python("-m", "experiments.digits", f"--workdir={workdir}", **{variable: value})
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("error: JAX cannot start") and found in line and variable in line
    assert not workdir.exists()


def helps() -> None:
    """Prints the help of every main: without docstrings, what is left."""
    for name in (*MAINS, *TOOLS):
        print(f"== {name}")
        main = importlib.import_module(f"experiments.{name}")
        if hasattr(main, "__path__"):
            main = importlib.import_module(f"experiments.{name}.command")
        if name in MAINS:
            body = getattr(main, "main", None)
            code = cli.run_main(body, main.DEFAULTS, main.__doc__, [name, "--help"])
        else:
            code = main.main([name, "--help"])
        assert code == 0 or sys.exit(name)


def test_every_main_has_help_without_docstrings():
    done = python("-OO", "-c", "from tests.runs import test_terminal; test_terminal.helps()")
    assert (done.returncode, done.stderr) == (0, "")
    _, *pages = done.stdout.split("== ")
    assert [page.split("\n")[0] for page in pages] == [*MAINS, *TOOLS]
    for page in pages:
        assert "--flagfile" in page or "--help" in page
        assert "None" not in page


def test_a_run_without_stderr_docstrings_and_a_workdir_in_the_home_directory(tmp_path):
    """As cron starts it, with the bar that is shown by default."""
    flags = "--workdir=~/run --algorithm=dsgd --agents=2 --epochs=1 --eval_every=1 --progress"
    command = f"exec {sys.executable} -OO -m tests.support.tiny_main {flags} --nofigures 2>&-"
    done = python(
        "-c", f"import os; os.execv('/bin/sh', ['sh', '-c', {command!r}])", HOME=str(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"run directory: {tmp_path}/run" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()
