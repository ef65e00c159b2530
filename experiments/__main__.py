"""Lists the commands: `python -m experiments`."""

import ast
import sys
from pathlib import Path

_FOLDER = Path(__file__).parent
_GUARD = '\nif __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Each command's name, and the first line of its docstring."""
    own = [file for file in _FOLDER.glob("[!_]*.py") if _GUARD in file.read_text(encoding="utf-8")]
    files = {file.stem: file for file in own}
    files |= {f.parent.name: f.with_name("command.py") for f in _FOLDER.glob("*/__main__.py")}
    doc = lambda file: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return {name: doc(files[name]).partition("\n")[0] for name in sorted(files)}


def main() -> int:
    """Prints the list; returns the exit code."""
    known = commands()
    width = max(map(len, known))
    print("python -m experiments.NAME, with --help for its flags:\n")
    print("\n".join(f"  {name:<{width}}  {text}" for name, text in known.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
