"""A run directory: config.json, dataset.json, partition.json, metrics.jsonl (one object a row),
summary.json, figures/, checkpoints/.

Files are written whole under another name and then renamed, so that what is there is complete; the
metrics file grows by whole lines. Numbers that are not finite are written as null, which every JSON
reader accepts. Of several processes (`ccl_jax.devices.hosts`) the first one writes.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

import ccl_jax
from ccl_jax.devices import hosts
from ccl_jax.runs import environment

# Packages whose version can change a result.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")

# What a lock answers that somebody else holds.
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class RunDirectory:
    """One run's files.

    Args:
      path: The directory; made by `create`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    @property
    def figures(self) -> Path:
        """Where figures go; made when first asked for."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    def below(self) -> list[str]:
        """Names of the runs one level below, of several seeds or methods."""
        return sorted(file.parent.name for file in self.path.glob("*/config.json"))

    def settings(self) -> dict[str, Any]:
        """What config.json says: the settings, and `made_with`.

        Raises:
          ValueError: There is no run here, or the file is damaged.
        """
        try:
            text = (self.path / "config.json").read_bytes()
        except OSError:
            remedy = (
                f"it holds the runs {', '.join(below)}; give the path of one"
                if (below := self.below())
                else "give the directory of a run, which it names at its end"
            )
            raise ValueError(f"{self.path} is no run (no config.json): {remedy}") from None
        try:
            return _object(text)
        except ValueError:
            raise ValueError(f"{self.path}/config.json is damaged; it is no JSON object") from None

    def summary(self) -> dict[str, Any] | None:
        """What summary.json says; None if the run has not ended.

        Raises:
          ValueError: The file is damaged.
        """
        file = self.path / "summary.json"
        return _object(file.read_bytes()) if file.exists() else None

    def made_with(self) -> dict[str, Any]:
        """What config.json says that the run was started with."""
        return self.settings().get("made_with", {})

    def claim(self) -> None:
        """Makes the directory, with -2, -3 ... at its name's end where others have been quicker.

        For a name that nobody has asked for.
        """
        name = self.path
        for number in itertools.count(2):
            try:
                return self.path.mkdir(parents=True)
            except FileExistsError:
                self.path = name.with_name(f"{name.name}-{number}")

    @contextlib.contextmanager
    def lock(
        self, note: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    ) -> Iterator[None]:
        """Keeps other processes out of the directory, which is made if need be.

        The lock goes with the process, however that ends. Of several processes the first holds it.

        Args:
          note: Is told, in one line, where the file system has no locks, so that nobody is kept out.

        Raises:
          ValueError: Another run lives here, or the directory cannot be written.
        """
        if not hosts.is_first():
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be written to ({error.strerror}); choose another work "
                "directory"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _BUSY:
                    raise ValueError(
                        f"another run is at work in {self.path}; wait for it to end, or choose "
                        "another work directory"
                    ) from None
                note(
                    f"note: {self.path} cannot be locked ({error.strerror}); make sure that no other "
                    "run uses it"
                )
            yield

    def check_free(self) -> None:
        """Makes sure that a run can start here.

        Raises:
          ValueError: The directory already holds a run, is no directory, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; a run needs a directory of its own")
        # A comparison keeps its runs one level below.
        for config in (*self.path.glob("config.json"), *self.path.glob("*/config.json")):
            raise ValueError(
                f"{self.path} already holds a run ({config} is there); choose another work "
                "directory, or go on with that one by --resume (in Python resume=True)"
            )
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ValueError(f"{parent} cannot be written to; choose another work directory")

    def check_shared(self) -> None:
        """Makes sure that this process sees the run that the first one made.

        Raises:
          ValueError: It does not.
        """
        if not (self.path / "config.json").exists():
            raise ValueError(
                f"process {jax.process_index()} does not see what process 0 wrote to {self.path}; "
                "choose a work directory on a file system that all hosts share"
            )

    def check_same(
        self,
        config: Mapping[str, Any],
        may_differ: Iterable[str] = (),
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Makes sure that the run that is here can go on with these settings.

        Args:
          config: The settings.
          may_differ: Those that do not change the result.
          defaults: What settings were before they existed, for a run that is older than they are.

        Raises:
          ValueError: There is no run here, or one of other settings; the message lists them.
        """
        if not (self.path / "config.json").exists():
            remedy = (
                f"it holds the runs {', '.join(below)}; give the path of one, or the flags of all"
                if (below := self.below())
                else "leave out --resume to start one"
            )
            raise ValueError(
                f"{self.path} holds no run that could go on (no config.json); {remedy}"
            )
        there = plain(defaults) | self.settings()
        names = [name for name in config if name not in set(may_differ)]
        wanted = plain({name: config[name] for name in names})
        different = [
            f"{name} was {there.get(name)!r}, now {wanted[name]!r}"
            for name in names
            if there.get(name) != wanted[name]
        ]
        if different:
            raise ValueError(
                f"{self.path} holds a run of another configuration: {'; '.join(different)}; give "
                "the same settings, or choose another work directory"
            )

    def create(self, config: Mapping[str, Any]) -> None:
        """Makes the directory and writes config.json, in the first process.

        Raises:
          ValueError: As `check_free`.
        """
        if hosts.is_first():
            self.check_free()
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("config.json", config)
            self._write("metrics.jsonl", "")

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl and flushes it to the system."""
        if hosts.is_first():
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(plain(row)) + "\n")

    def replace_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Makes metrics.jsonl hold these rows and no others."""
        self._write("metrics.jsonl", "".join(json.dumps(plain(row)) + "\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl so far.

        Raises:
          ValueError: The file is damaged.
          FileNotFoundError: There is none.
        """
        rows = []
        for number, line in enumerate((self.path / "metrics.jsonl").read_bytes().splitlines(), 1):
            try:
                rows.append(_object(line))
            except ValueError as error:
                raise ValueError(f"{error}, in line {number} of metrics.jsonl") from None
        if not all(isinstance(row.get("epoch"), int) for row in rows):
            raise ValueError("metrics.jsonl has a row without its epoch")
        return rows

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file, whole or not at all."""
        self._write(name, json.dumps(plain(value), indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        if hosts.is_first():
            partial = self.path / f".{name}.partial"
            write_through(partial, text)
            partial.replace(self.path / name)


def write_through(path: Path, text: str) -> None:
    """Writes a file that is on the disk when this returns, whatever then happens to the power."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; a ValueError, without the name of its file, where it is none."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{value} is no JSON object")
    return value


def made_with() -> dict[str, Any]:
    """What results are made with: versions, device, settings of JAX, command line and git commit.

    What is not known is None.
    """
    devices = jax.devices()
    return {
        "ccl_jax": ccl_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{devices[0].device_kind} x {len(devices)}",
        "instruction_set": environment.instruction_set(),
        "jax_settings": environment.jax_settings(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": list(sys.argv),
        "git_commit": git_commit(Path(__file__).parents[2]),
    }


def git_commit(checkout: Path) -> str | None:
    """The commit of a checkout, with "-dirty" if code differs from it; None if it is none.

    Code is what is written in Python or TOML: results and texts, which change while studies run, do
    not change what a run gives.
    """

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", checkout, *command],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        # An installed package can lie below somebody else's checkout.
        if Path(git("rev-parse", "--show-toplevel")) != checkout.resolve():
            return None
        differs = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.toml")
        return git("rev-parse", "HEAD") + ("-dirty" if differs else "")
    except (OSError, subprocess.SubprocessError):
        return None


def plain(value: Any) -> Any:
    """Turns NumPy and JAX values into what JSON knows; not-finite floats become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
