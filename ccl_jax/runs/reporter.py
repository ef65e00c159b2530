"""What a run says of itself while it trains, and its rows of metrics as they come.

All of it goes to stderr: a line at the start, what is compiled and for how long, and on a terminal a
bar; where nobody looks, as in a file, a line an epoch in its place.
"""

import contextlib
import itertools
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from tqdm import tqdm

from ccl_jax import training
from ccl_jax.data import batches
from ccl_jax.data.feeds import Feed
from ccl_jax.devices import hosts
from ccl_jax.runs import forecast, inputs, terminal
from ccl_jax.runs.checkpoints import Stopped
from ccl_jax.runs.config import Config
from ccl_jax.runs.signals import leaving
from ccl_jax.training.progress import Progress, Row

if TYPE_CHECKING:
    from ccl_jax.runs.runner import Run

# Up to so many columns, what a bar says would be cut off before the accuracies.
_NARROW = 120
_NARROW_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Reporter:
    """What a run shows on the terminal and writes into its metrics while it trains.

    Args:
      run: The run.
      feed: Where its batches come from.
      start: Where it starts.
      stop: As for `trainer.train`.
      board: Is given every row, too.
      shown: Whether anything is shown at all.

    Attributes:
      rows: The rows of metrics of all epochs so far.
    """

    def __init__(
        self,
        run: "Run",
        feed: Feed,
        start: Progress,
        stop: Callable[[], int],
        board: Callable[[Row], None],
        shown: bool = True,
    ) -> None:
        self.rows = list(start.rows)
        self._run, self._feed, self._start = run, feed, start
        self._stop, self._board = stop, board
        self._bar = progress_bar(run, start.step) if shown else tqdm(disable=True)
        self._shown = shown and run.config.progress and not run.config.quiet and hosts.is_first()
        self._began = time.monotonic()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def opening(self, state: training.TrainState, parameters: int) -> None:
        """Says what will be trained, with how many parameters a model, and what will be sent."""
        if self._shown and not self._start.rollbacks:  # It has been said.
            print(opening(self._run, state, parameters), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def compiling(self, programs: str) -> Iterator[None]:
        """Says that something compiles, and for how long; a signal ends the process meanwhile."""
        if not self._shown:
            with nothing_to_save(self._stop, self._start.step):
                yield
            return
        said = terminal.waiting(f"compiling {programs}")
        with said, nothing_to_save(self._stop, self._start.step, before="\n"):
            yield
        self._bar.unpause()  # Its speed is that of the steps.
        self._began = time.monotonic()

    def step(self, step: int) -> None:
        """One step is done."""
        self._bar.update()

    def epoch(self, row: Row) -> None:
        """An epoch has ended, perhaps early; `row` is its row of metrics."""
        row |= inputs.throughput(self._run.data, self._feed, row)
        self.rows.append(row)
        self._run.directory.log(row)
        self._board(row)
        shown = {"loss": f"{row['cross_entropy']:.3f}"}
        if "local_accuracy_mean" in row:
            shown["local"] = f"{100 * row['local_accuracy_mean']:.1f}%"
            shown["consensus"] = f"{100 * row['consensus_accuracy']:.1f}%"
        self._bar.set_postfix(shown)
        if self._shown and self._bar.disable:
            print(self._line(row, shown), file=sys.stderr, flush=True)

    def _line(self, row: Row, shown: dict[str, str]) -> str:
        """An epoch in one line, with the time that the others will take."""
        steps = self._feed.steps * self._run.config.epochs
        seconds = time.monotonic() - self._began
        left = seconds * (steps - row["step"]) / max(1, row["step"] - self._start.step)
        said = ", ".join(f"{name} {value}" for name, value in shown.items())
        return (
            f"epoch {row['epoch']} of {self._run.config.epochs}: {said}; "
            f"{tqdm.format_interval(seconds)}, {tqdm.format_interval(left)} left"
        )


def opening(run: "Run", state: training.TrainState, parameters: int) -> str:
    """What a run trains, on what, and what an agent will send: one line."""
    config, epochs = run.config, run.config.epochs
    steps = batches.steps_per_epoch(run.partition, config.batch_size) * epochs
    devices, kind = run.plan.devices, jax.devices()[0].device_kind
    sent = forecast.bytes_sent(run, state, steps) / 1e6
    # A CPU stands for several, with a thread each.
    device = "virtual device" if devices > 1 and jax.default_backend() == "cpu" else "device"
    count = lambda number, what: f"{number:,} {what}{'' if number == 1 else 's'}"
    return (
        f"{config.label} on {run.network.topology.name}, {count(config.agents, 'agent')}; "
        f"{config.model}, {count(parameters, 'parameter')}; {config.dataset}; "
        f"{count(devices, device)} ({kind}); {count(steps, 'step')} in {count(epochs, 'epoch')}; "
        f"an agent will send {sent:,.2f} MB"
    )


def what_next(directory: Path, config: Config, run: Path | None = None) -> str:
    """The commands that one is likely to want when a run has ended; one that was merged does not go on.

    Args:
      directory: Of the run, or of a comparison of several.
      config: Its settings.
      run: The run to predict with and to export; default: `directory`.
    """
    again = [*program(), f"--workdir={directory}", "--resume", f"--epochs={2 * config.epochs}"]
    tool = lambda name, *words: ["python", "-m", f"experiments.{name}", *words]
    chosen, others = [f"--run={run or directory}", *extensions()], [] if run else ["ANOTHER_RUN"]
    commands = [
        tool("predict", *chosen),
        tool("export", *chosen, "--format=npz"),  # It needs no other package.
        tool("compare", str(directory), *others),
        *([] if config.final_merge else [again]),
    ]
    return "\n".join(["next:", *(f"  {shlex.join(words)}" for words in commands)])


def program(argv: Sequence[str] | None = None) -> list[str]:
    """The command that runs, without the flags that say where and how long."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name, *given = sys.argv if argv is None else argv
    kept, words = [], iter(given)
    for word in words:
        flag, _, value = word.removeprefix("-").removeprefix("-").partition("=")
        if flag in ("workdir", "epochs") and not value:
            next(words, None)  # Written as --epochs 60.
        elif flag not in ("workdir", "epochs", "resume", "noresume"):
            kept.append(word)
    return ["python", *(["-m", spec.name] if spec else [name]), *kept]


def extensions(argv: Sequence[str] | None = None) -> list[str]:
    """The flags that run the user's own files, for other commands; their own main is one, too."""
    words = program(argv)
    own = [f"--extension={words[1]}"] if words[1].endswith(".py") else []  # Not of `-m` or `-c`.
    return own + given_extensions(words)


def given_extensions(words: Sequence[str]) -> list[str]:
    """Those flags among the words of a command, all written as --extension=FILE."""
    flag = re.compile("--?extension(=|$)")
    return [
        f"--extension={word[match.end() :] if match[1] else value}"
        for word, value in itertools.zip_longest(words, words[1:], fillvalue="")
        if (match := flag.match(word))
    ]


@contextlib.contextmanager
def nothing_to_save(stop: Callable[[], int], step: int = 0, before: str = "") -> Iterator[None]:
    """Before the first step, a signal ends the process even while something compiles.

    Args:
      stop: As for `trainer.train`.
      step: Steps that are saved.
      before: Ends the line that stderr is in.

    Raises:
      Stopped: A signal has come already.
    """
    with leaving(lambda number: f"{before}error: {Stopped(number, step)}\n"):
        (signal,) = hosts.largest(stop())
        if signal:
            raise Stopped(signal, step)
        yield


def progress_bar(run: "Run", done: int) -> tqdm:
    """A bar over the steps of a run, on a terminal; `done` of them are done."""
    config, (columns, rows) = run.config, terminal.size()
    return tqdm(
        total=batches.steps_per_epoch(run.partition, config.batch_size) * config.epochs,
        initial=done,
        delay=1e-6,  # Not before the first step: until then it is said what is compiled.
        desc=config.label,
        unit="step",
        ncols=columns - 1,
        nrows=rows,
        bar_format=None if columns > _NARROW else _NARROW_BAR,
        disable=not (
            config.progress and not config.quiet and hosts.is_first() and sys.stderr.isatty()
        ),
    )
