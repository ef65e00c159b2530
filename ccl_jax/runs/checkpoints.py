"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a directory named by its step, with the training state (written by orbax),
progress.json (where the run is) and checksums.json (SHA-256 of both, file by file). It is written in
the background under a hidden name and renamed when it is whole, so that a run which is killed while
saving has the one before. One whose checksums do not match is damaged, and passed over.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ccl_jax.devices import hosts
from ccl_jax.runs.directory import write_through
from ccl_jax.training import TrainState
from ccl_jax.training.progress import Progress

_PARTIAL = ".partial"


class Stopped(Exception):
    """A signal asked the run to stop, and it has been saved.

    Args:
      signal: The signal's number.
      step: Steps done.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped by signal {signal} after step {step}; --resume goes on")
        self.signal = signal


class Checkpoints:
    """The checkpoints of one run; a context that waits for the last save when it is left.

    Args:
      path: Their directory; made by the first save.
      keep: How many of the newest are kept. The best by consensus accuracy is kept too.
      warn: Is told, in one line, when a damaged checkpoint is passed over.
    """

    def __init__(
        self,
        path: Path,
        keep: int = 2,
        warn: Callable[[str], None] = lambda text: print(f"warning: {text}", file=sys.stderr),
    ) -> None:
        self.path = path.absolute()
        self._keep = keep
        self._warn = warn
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None
        # Of all checkpoints but those that `restore` has found damaged.
        self._scores = {step: self._score(step) for step in self.steps()}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._worker.shutdown()
        if kind is None:
            self.wait()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in increasing order; waits for one that is being written.

        Raises:
          OSError: That failed.
        """
        self.wait()
        return self._complete()

    def _complete(self) -> list[int]:
        found = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(int(p.name) for p in found if p.name.isdecimal())

    def best(self) -> int | None:
        """The step of the saved epoch with the best consensus accuracy; None without any."""
        known = {step: score for step, score in self._scores.items() if score is not None}
        return max(known, key=lambda step: (known[step], step), default=None)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves in the background; returns when the state's buffers are no longer needed.

        A state in which a parameter is not finite is no place to go on from and is not saved. With
        several processes all must call it, and the first one writes.

        Raises:
          OSError: The save before failed, as on a full disk.
        """
        self.wait()
        state = hosts.whole(state)
        arrays = _flatten(state)
        finite = all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))
        if finite and hosts.is_first():
            self._pending = self._worker.submit(self._write, arrays, progress)

    def drop(self, step: int) -> None:
        """Removes a checkpoint from which no way leads on. With several processes all must call it."""
        self.wait()
        with hosts.together():
            if hosts.is_first():
                shutil.rmtree(self.path / str(step))
        self._scores.pop(step, None)

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          OSError: It failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest checkpoint that is not damaged; None where there are no checkpoints at all.

        Args:
          like: A state with the structure, shapes, dtypes and devices that are wanted.

        Raises:
          ValueError: All are damaged, or the state is of another structure.
        """
        steps = self.steps()
        for step in reversed(steps):
            damage = self._damage(step)
            if damage is None:
                return self._read(step, like)
            self._warn(f"checkpoint {self.path / str(step)} is damaged ({damage}); trying the last")
            self._scores.pop(step, None)
        if steps:
            raise ValueError(
                f"all checkpoints in {self.path} are damaged; start again in another work directory"
            )
        return None

    def choose(self, which: str | int) -> int:
        """The step of a checkpoint that is whole.

        Args:
          which: "last", "best" (by consensus accuracy) or a step. Of the last ones, those that are
            damaged are passed over.

        Raises:
          ValueError: There is no such checkpoint, or it is damaged.
        """
        steps = self.steps()
        there = f"there are those of steps {', '.join(map(str, steps))}"
        if not steps:
            raise ValueError(f"{self.path.parent} has no checkpoint yet; let the run save one")
        if which == "last":
            for step in reversed(steps):
                if (damage := self._damage(step)) is None:
                    return step
                self._warn(f"checkpoint {self.path / str(step)} is damaged ({damage})")
            raise ValueError(f"all checkpoints in {self.path} are damaged")
        if which == "best":
            if (step := self.best()) is None:
                raise ValueError(
                    f"no checkpoint in {self.path} is of the end of an epoch that was evaluated; "
                    f"{there}"
                )
        elif str(which).isdecimal() and int(which) in steps:
            step = int(which)
        else:
            raise ValueError(
                f"checkpoint {which!r} is not in {self.path}; give last, best or a step: {there}"
            )
        if (damage := self._damage(step)) is not None:
            raise ValueError(
                f"checkpoint {self.path / str(step)} is damaged ({damage}); take another: {there}"
            )
        return step

    def progress(self, step: int) -> Progress:
        """Where the run was at a checkpoint."""
        return Progress.from_json(json.loads((self.path / str(step) / "progress.json").read_text()))

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint by their names in the state, as `.params['head']['kernel']`."""
        with _orbax() as reader:
            return reader.restore(self.path / str(step) / "state")

    def _write(self, arrays: dict[str, np.ndarray], progress: Progress) -> None:
        partial, final = self.path / _PARTIAL, self.path / str(progress.step)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with _quiet(), _orbax() as writer:
                writer.save(partial / "state", args=ocp.args.StandardSave(arrays))
            write_through(partial / "progress.json", json.dumps(progress.to_json()))
            write_through(partial / "checksums.json", json.dumps(_checksums(partial)))
            if final.exists():  # a damaged one that was passed over
                shutil.rmtree(final)
            partial.rename(final)
        # What a full disk raises depends on which of orbax's layers notices it.
        except (OSError, ValueError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"the checkpoint of step {progress.step} could not be written to {self.path} "
                f"({_last_words(error)}); complete ones are there of steps {self._complete()}"
            ) from error
        self._scores[progress.step] = self._score(progress.step)
        self._prune()

    def _prune(self) -> None:
        kept = {*sorted(self._scores)[-self._keep :], self.best()}
        for step in set(self._complete()) - kept:
            shutil.rmtree(self.path / str(step), ignore_errors=True)
            self._scores.pop(step, None)

    def _score(self, step: int) -> float | None:
        """Consensus accuracy of a checkpoint at the end of an evaluated epoch, else None."""
        try:
            progress = json.loads((self.path / str(step) / "progress.json").read_text())
            ended = progress["position"] == 0 and progress["rows"]
            return progress["rows"][-1].get("consensus_accuracy") if ended else None
        except (OSError, ValueError, KeyError):
            return None

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None if nothing is."""
        folder = self.path / str(step)
        try:
            wanted = dict(json.loads((folder / "checksums.json").read_text()))
            found = _checksums(folder)
        except (OSError, ValueError, TypeError) as error:
            return _last_words(error)
        wrong = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
        return f"{wrong[0]} has changed or is missing" if wrong else None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        folder, found = self.path / str(step), self.arrays(step)
        # Given what is wanted, orbax would cut and pad arrays to their shapes without a word.
        describe = lambda arrays: {name: f"{x.dtype}{x.shape}" for name, x in arrays.items()}
        there, wanted = describe(found), describe(_flatten(like))
        wrong = sorted(n for n in wanted | there if wanted.get(n) != there.get(n))
        if wrong:
            raise ValueError(
                f"checkpoint {folder} does not fit this configuration: {wrong[0]} is "
                f"{there.get(wrong[0], 'missing')} and should be {wanted.get(wrong[0], 'missing')}; go "
                "on with the version of ccl_jax that made it, or start anew in another directory"
            )
        return _unflatten(found, like), self.progress(step)


class Autosave:
    """Decides when to save; `due` and `on_progress` of `loop.fit`.

    Args:
      checkpoints: Where to.
      last_epoch: The run's last epoch, after which it is saved in any case.
      epochs: Save after every so many epochs; 0 for never.
      minutes: Save when so many minutes have passed; 0 for never.
      stop: Returns the number of a signal that asks to stop, or 0.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        last_epoch: int,
        epochs: int = 0,
        minutes: float = 0.0,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self._checkpoints = checkpoints
        self._last_epoch = last_epoch
        self._epochs = epochs
        self._seconds = 60 * minutes
        self._stop = stop
        self._saved = time.monotonic()
        self._answer: tuple[int, ...] | None = None

    def due(self) -> Callable[[], bool]:
        """Whether a signal has come or time is up; see `loop.fit`."""
        ask = hosts.ask_largest(self._wishes)

        def answer() -> bool:
            self._answer = ask()
            return any(self._answer)

        return answer

    def _wishes(self) -> tuple[int, int]:
        """The signal that asks to stop, or 0, and whether it is late."""
        return self._stop(), 0 < self._seconds <= time.monotonic() - self._saved

    def __call__(self, state: TrainState, progress: Progress) -> None:
        """Saves if it is time to.

        Raises:
          Stopped: A signal asks for it; the run is saved.
          OSError: A save failed.
        """
        ended = progress.epoch - 1 if progress.position == 0 else 0
        due = ended > 0 and self._epochs > 0 and ended % self._epochs == 0
        # Clocks differ, and a signal may reach one process only: if one has to, all save.
        # Within an epoch they have agreed to call this; at its end, that answer is an old one.
        agreed, self._answer = self._answer, None
        signal, late = agreed if agreed and not ended else hosts.largest(*self._wishes())
        if signal or due or late or ended == self._last_epoch:
            self._checkpoints.save(state, progress)
            self._saved = time.monotonic()
        if signal:
            self._checkpoints.wait()
            raise Stopped(signal, progress.step)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from printing the traceback of an error that it raises as well."""
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda raised: None if _is_late(raised) else hook(raised)
    try:
        yield
        sys.unraisablehook = hook  # After a failure, other arrays may be under way still.
    finally:
        logger.setLevel(level)


def _is_late(raised: "sys.UnraisableHookArgs") -> bool:
    """Whether an array has reported to orbax's event loop after that was closed by an error."""
    return isinstance(raised.exc_value, RuntimeError) and "loop is closed" in str(raised.exc_value)


def _orbax() -> ocp.Checkpointer:
    """Writes and reads arrays; of several processes each for itself, without waiting for others."""
    options = ocp.options.MultiprocessingOptions()
    if hosts.count() > 1:
        me = jax.process_index()
        options = ocp.options.MultiprocessingOptions(me, {me}, f"process-{me}")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as a directory of orbax, where none is.

    Raises:
      OSError: It could not be written.
    """
    try:
        with _quiet(), _orbax() as writer:
            writer.save(path.absolute(), args=ocp.args.StandardSave(tree))
    except (OSError, ValueError, RuntimeError) as error:  # As for checkpoints.
        raise OSError(_last_words(error)) from error


def is_tree(path: Path) -> bool:
    """Whether there is what `save_tree` writes."""
    return (path / "_CHECKPOINT_METADATA").is_file()


def _flatten(state: TrainState) -> dict[str, np.ndarray]:
    """Leaves by name, copied to the host; the key as its data."""
    state = state._replace(key=jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def _unflatten(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """The way back, on the devices of `like`."""
    plain = like._replace(key=jax.random.key_data(like.key))
    place = lambda path, leaf: jax.device_put(arrays[jax.tree_util.keystr(path)], leaf.sharding)
    state = jax.tree_util.tree_map_with_path(place, plain)
    impl = jax.random.key_impl(like.key)
    return state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the checksums themselves, by relative path."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "checksums.json":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _last_words(error: BaseException) -> str:
    """The end of an error's message, where orbax puts the reason, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else "... " + text[-200:]
