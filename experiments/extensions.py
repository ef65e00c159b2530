"""Files of a user's own that are run first, so that what they register has a name on the command line.

python -m experiments.digits --extension=mine.py --algorithm=mine
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

# What has been run in this process, as it was given; workers of a study run the same.
LOADED: list[str] = []


def load(file: str) -> None:
    """Runs a Python file as a module; what it imports may lie beside it.

    Args:
      file: Its path.

    Raises:
      ValueError: There is no such file, it is no Python file, or there is an error in it; the message
        has its line.
    """
    path = Path(file).absolute()
    if path.suffix != ".py" or not path.is_file():
        what = "no file" if not path.is_file() else "no .py file"
        raise ValueError(
            f"--extension={file} is {what}; give a Python file that registers methods, losses, "
            "graphs, models or datasets (docs/extending.md)"
        )
    # Two files of one name are two modules.
    name = f"extension_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BrokenPipeError:  # Of what it prints; no error in it.
        raise
    except SystemExit as error:
        raise ValueError(
            f"{file} ends the program; an extension registers what it has, and its own main belongs "
            'below: if __name__ == "__main__"'
        ) from error
    except Exception as error:
        found = blame(error, [file])
        if isinstance(error, SyntaxError) and found is None:  # Of this file, or of one it imports.
            found = f"{error.filename or file}, line {error.lineno}: {error.msg}"
        raise ValueError(found or f"{file}: {error}") from error
    LOADED.append(file)


def blame(error: BaseException, files: Sequence[str] | None = None) -> str | None:
    """One line on an error that was raised in a user's own file, or in what that called; else None.

    It names the last line in the file itself, or in one beside it that it imports.

    Args:
      error: As it was caught.
      files: The files; default: all that are loaded.
    """
    own = {str(Path(file).absolute()): file for file in (LOADED if files is None else files)}
    frames = traceback.extract_tb(error.__traceback__)
    calls = next((k for k, frame in enumerate(frames) if frame.filename in own), None)
    if calls is None:
        return None
    beside = {Path(file).parent for file in own}
    at = [frame for frame in frames[calls:] if Path(frame.filename).parent in beside][-1]
    where = "" if at.name == "<module>" else f", in {at.name}"
    said = [] if type(error) is ValueError else [type(error).__name__]
    said += [text] if (text := " ".join(str(error).split())) else []
    file = own.get(at.filename, at.filename)
    return ": ".join([f"{file}, line {at.lineno}{where}", *said])
