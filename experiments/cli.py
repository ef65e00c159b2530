"""From command line to Config, and from exceptions to one clear line and an exit code.

Exit codes: 0 done; 1 the run failed (a loss is no longer finite, or a file cannot be written); 2
something asked for is wrong, and nothing was written, or it takes more memory than there is; 128 + n
stopped by signal n, as 130 by SIGINT (Ctrl-C) and 143 by SIGTERM, saved if training had begun; 141
(SIGPIPE) who read the output has left.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from ccl_jax.devices import hosts
from ccl_jax.names import nearest
from ccl_jax.runs import paths, signals, terminal
from ccl_jax.runs.checkpoints import Stopped
from ccl_jax.runs.config import Config
from ccl_jax.training.loop import Diverged
from experiments import extensions
from experiments.flag_values import FlagValues

# What XLA and CUDA say.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


def run_main(
    main: Callable[[Config, frozenset[str]], None],
    defaults: Config,
    description: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses flags and runs a main.

    Args:
      main: `main(config, given)`; `given` has the names of the flags that were on the command line.
      defaults: The settings where no flag is given.
      description: Shown by `--help`; None where Python keeps no docstrings (-OO).
      argv: The command line with the program's name; default: `sys.argv`.

    Returns:
      The exit code.
    """

    def body() -> None:
        values = define(defaults)
        parse(values, argv)
        if values["help"].value:
            print(help_text(defaults, description))
            return
        names = [field.name for field in dataclasses.fields(defaults)]
        settings = given_settings(values, names)
        given = frozenset(settings)
        if values["preset"].value is not None:
            from experiments import presets  # Only who asks for one pays for loading it.

            preset = presets.load(values["preset"].value, defaults.dataset)
            settings, given = preset | settings, given | preset.keys()
        config = dataclasses.replace(defaults, **settings)
        _join(config)
        main(config, given)

    return guard(body)


def parse(
    values: flags.FlagValues, argv: Sequence[str] | None = None, *, others: bool = False
) -> list[str]:
    """Reads a command line; in all that it gives, `~` becomes the home directory.

    Every main takes `--extension=FILE`: these files are run here (`extensions`).

    Args:
      values: The flags, which are set.
      argv: With the program's name; default: `sys.argv`.
      others: Whether there may be something else on it, such as names of files.

    Returns:
      What else there is.

    Raises:
      ValueError: Something on it is no flag, or no path on this machine; or there is no extension.
      flags.Error: A flag is wrong.
    """
    text = "run this Python file first: what it registers has a name then; may be repeated"
    if "extension" not in values:
        flags.DEFINE_multi_string("extension", [], text, flag_values=values)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            rest = values(list(sys.argv if argv is None else argv))[1:]
        except flags.UnrecognizedFlagError as error:
            meant = _meant(error.flagname, values)
            hint = f"did you mean --{meant}?" if meant else "--help lists all"
            raise flags.Error(f"Unknown command line flag {error.flagname!r}; {hint}") from None
    if said.getvalue():  # flag files that name each other: absl only warns
        raise ValueError(said.getvalue().removeprefix("Warning: "))
    if rest and not others:
        directory = "run" in values and values["run"].value is None and rest[0][:1] != "-"
        hint = f"did you mean --run={rest[0]}?" if directory else "flags are --name=value"
        raise ValueError(f"{rest[0]!r} is not a flag; {hint}")
    local = lambda value: paths.local(value) if isinstance(value, str) else value
    for flag in map(values.__getitem__, values):
        given = flag.value
        flag.value = list(map(local, given)) if isinstance(given, list) else local(given)
    if not ("help" in values and values["help"].value):
        for file in values["extension"].value:
            if file not in extensions.LOADED:  # As by the page before, of `report --all`.
                extensions.load(file)
    return list(map(paths.local, rest))


def _meant(name: str, values: flags.FlagValues) -> str | None:
    """The flag that was likely meant; of a switch that is to be off, its negation."""
    known = {each: values[each].help for each in values}
    off = name.startswith("no") and nearest(name[2:], known)
    if off and values[off].boolean:
        return f"no{off}"
    return nearest(name, known)


def _join(config: Config) -> None:
    """Joins other processes if the settings ask for it."""
    joined = hosts.join(
        config.coordinator,
        config.num_processes,
        config.process_id,
        find=config.distributed,
        timeout_seconds=config.join_seconds,
    )
    if joined and config.workdir is None:
        raise ValueError("several processes need one --workdir, a directory that all of them see")


def output(text: str) -> Path:
    """Where a file can be written, by its name on the command line; makes sure of it before the work.

    Raises:
      ValueError: There is no name, it is a directory's or of a file that cannot be written to, or one
        of its folders is a file.
    """
    path = Path(text)
    if not path.name:
        raise ValueError(f"output is {text!r}; it must be the name of a file")
    if path.is_dir():
        raise ValueError(f"output is {path}, a directory; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(
            f"output is {path}, which is no file but a device or pipe; give another name"
        )
    below = next(parent for parent in path.absolute().parents if parent.exists())
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"output is {path}, which cannot be written to; give another name")
    if not below.is_dir() or not os.access(below, os.W_OK):
        raise ValueError(
            f"output is {path}, and {below} cannot be written to; choose another place"
        )
    return path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or directory that takes the place of another one, whole or not at all.

    Raises:
      OSError: It cannot take that place, as a file that of a directory.
    """
    path = path.resolve()
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / path.name, folder / f"{path.name}.before"
    try:
        yield new
        if path.is_file() == new.is_file() and path.exists():
            shutil.copymode(path, new)
        try:
            if path.is_dir() and new.is_dir():
                path.rename(old)
            new.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def guard(body: Callable[[], None]) -> int:
    """Runs `body`; turns what a user can mend into one line on stderr and an exit code."""
    with terminal.usable_streams(), signals.may_leave():
        try:
            body()
            sys.stdout.flush()
        except BrokenPipeError:  # As `... | head` ends any program.
            return 128 + signal.SIGPIPE
        except (flags.Error, ValueError) as error:
            return _complain(extensions.blame(error) or error, 2)
        except Diverged as error:
            return _complain(error, 1, everywhere=True)
        except OSError as error:
            return _complain(error, 1)
        except Stopped as stopped:
            return _complain(stopped, 128 + stopped.signal, everywhere=True)
        except KeyboardInterrupt:
            return _complain("interrupted", 130)
        except Exception as error:
            if (line := lacking(error) or extensions.blame(error)) is None:
                if hosts.count() > 1:
                    traceback.print_exc()
                    hosts.leave(1)  # Others would wait for this process.
                raise
            return _complain(line, 2)
    return 0


def lacking(error: Exception) -> str | None:
    """One line on an error that is about what this machine lacks, memory or a device; else None."""
    text = " ".join(str(error).split())
    said = text if len(text) < 300 else f"{text[:300]} ..."
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return (
            f"not enough memory ({said or 'it is all used'}); take fewer agents, a smaller model or "
            "batch, or a shorter delay of --straggle, for which models are remembered"
        )
    try:
        jax.devices()
    # Which exception it is depends on the device, and on whether Python checks assertions.
    except Exception as error:
        found = " ".join(str(error).split()) if isinstance(error, RuntimeError) else ""
        found = found or "no such device is here"
        asked = os.environ.get("JAX_PLATFORMS")
        return (
            f"JAX cannot start with JAX_PLATFORMS={asked}: {found}; set JAX_PLATFORMS=cpu for the "
            "processor, or unset it for the best device that JAX finds"
        )
    return None


def define(defaults: Config) -> flags.FlagValues:
    """Flags for all fields of a Config, in a set of their own."""
    values = FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_string("flagfile", None, "read flags from this file", flag_values=values)
    flags.DEFINE_string("preset", None, "a setting of the paper", flag_values=values)
    define_settings(values, defaults, [field.name for field in dataclasses.fields(defaults)])
    return values


def define_settings(
    values: flags.FlagValues, defaults: Config, names: Collection[str], when: str = ""
) -> None:
    """Adds flags for these fields of a Config; `when` stands before their help."""
    kinds = typing.get_type_hints(Config)
    for field in dataclasses.fields(defaults):
        if field.name not in names:
            continue
        default = getattr(defaults, field.name)
        text = when + field.metadata["help"]
        kind = _plain_type(kinds[field.name])
        if kind is bool:
            flags.DEFINE_bool(field.name, default, text, flag_values=values)
        elif kind is int:
            flags.DEFINE_integer(field.name, default, text, flag_values=values)
        elif kind is float:
            flags.DEFINE_float(field.name, default, text, flag_values=values)
        elif kind is tuple:
            flags.DEFINE_multi_string(field.name, list(default), text, flag_values=values)
        else:
            # A text or a number, which the Config reads.
            default = default if default is None else str(default)
            flags.DEFINE_string(field.name, default, text, flag_values=values)


def given_settings(values: flags.FlagValues, names: Iterable[str]) -> dict[str, Any]:
    """What was given of these fields of a Config."""
    return {name: _value(values[name].value) for name in names if values[name].present}


def help_text(defaults: Config, description: str | None) -> str:
    """Flags by group, with their defaults."""
    lines = [textwrap.dedent(description or "").strip(), ""]
    groups: dict[str, list[dataclasses.Field]] = {}
    for field in dataclasses.fields(defaults):
        groups.setdefault(field.metadata["group"], []).append(field)
    for group, fields in groups.items():
        lines += [f"{group}:"]
        for field in fields:
            default = getattr(defaults, field.name)
            shown = "" if default in (None, ()) else f" [{default}]"
            text = field.metadata["help"] + shown
            # On by default: what one types is how to switch it off.
            name = f"[no]{field.name}" if default is True else field.name
            lines += textwrap.wrap(
                text,
                width=100,
                initial_indent=f"  --{name:<22} ",
                subsequent_indent=" " * 27,
                break_on_hyphens=False,  # Names are to be copied.
            )
        lines += [""]
    lines += [
        "Files of your own:",
        f"  --{'extension':<22} a Python file that is run first: what it registers has a name then",
        "",
        "Defaults are in brackets. Those that are True are switched off by --noNAME.",
        "--preset=NAME takes a setting of the paper; python -m experiments.presets lists them.",
        "--flagfile=FILE reads flags from a file, one a line. A flag beside a preset wins.",
    ]
    return "\n".join(lines)


def page(doc: str | None, values: flags.FlagValues) -> str:
    """What a main does, as far as Python keeps docstrings (not with -OO), and its flags."""
    lines = [(doc or "").strip(), "", "Flags:"]
    for flag in {values[name].name: values[name] for name in values}.values():  # -h is --help
        shown = "" if flag.default in (None, [], False) else f" [{flag.default}]"
        lines.append(f"  --{flag.name:<14} {' '.join(flag.help.split())}{shown}")
    return "\n".join(lines).strip()


def _plain_type(kind: object) -> type:
    """`float` for `float | None`, `str` where a text is allowed, `tuple` for `tuple[str, ...]`."""
    if isinstance(kind, types.UnionType):
        if str in typing.get_args(kind):
            return str
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    return typing.get_origin(kind) or kind


def _value(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _complain(error: object, code: int, everywhere: bool = False) -> int:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    if not everywhere:
        hosts.leave(code)
    return code
