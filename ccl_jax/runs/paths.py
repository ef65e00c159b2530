"""Paths as users write them: in a flag, or in a part of one, as in --domain=folder:~/pets."""

import os
import re

# `~` or `~user` where a path begins: at the start, or after a name and a colon or equals sign.
_HOME = re.compile(r"(?:^|(?<=[:=,+]))~[^/:+,]*(?=[/:+,]|$)")
_REMOTE = re.compile(r"[A-Za-z][\w.-]*://")


def local(text: str) -> str:
    """A setting with the home directory in place of every `~` with which a path begins.

    Args:
      text: A path, NAME:PATH, or anything else.

    Raises:
      ValueError: It is a place that is no path on this machine, as gs://bucket, or there is no such
        user.
    """
    if remote := _REMOTE.search(text):
        raise ValueError(
            f"{text!r} is no path on this machine; {remote.group()} cannot be read or written: give "
            "the path of a file system that is mounted here"
        )
    return _HOME.sub(_home, text)


def _home(found: re.Match[str]) -> str:
    path = os.path.expanduser(found.group())
    if path.startswith("~"):
        raise ValueError(
            f"{found.string!r}: the home directory {found.group()} is not known; write "
            f"./{found.group()} for a folder of that name"
        )
    return path
