"""Files of a user's own that are run first, so that what they register has a name on the command line.

python -m experiments.digits --extension=mine.py --algorithm=mine
"""

import importlib.util
import sys
from pathlib import Path

# What has been run in this process, as it was given; workers of a study run the same.
LOADED: list[str] = []


def load(file: str) -> None:
    """Runs a Python file as a module; what it imports may lie beside it.

    Args:
      file: Its path. An error in it is shown as Python shows it, with its line.

    Raises:
      ValueError: There is no such file, or it is no Python file.
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
    spec.loader.exec_module(module)
    LOADED.append(file)
