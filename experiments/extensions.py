"""Files of a user's own that are run first, so that what they register has a name on the command line.

python -m experiments.digits --extension=mine.py --algorithm=mine
"""

import importlib.util
import sys
import traceback
from pathlib import Path

# What has been run in this process, as it was given; workers of a study run the same.
LOADED: list[str] = []


def load(file: str) -> None:
    """Runs a Python file as a module; what it imports may lie beside it.

    Args:
      file: Its path.

    Raises:
      ValueError: There is no such file, or it is no Python file; or what it does raises one, or an
        OSError, and the message has the line. Other errors in it are shown as Python shows them.
    """
    path = Path(file).absolute()
    if path.suffix != ".py" or not path.is_file():
        what = "no file" if not path.is_file() else "no .py file"
        raise ValueError(
            f"--extension={file} is {what}; give a Python file that registers methods, losses, "
            "graphs, models or datasets (docs/extending.md)"
        )
    name = f"extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BrokenPipeError:  # Of what it prints; no error in it.
        raise
    except (OSError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        raise ValueError(f"{file}, line {lines[-1]}: {error}" if lines else str(error)) from error
    LOADED.append(file)
