"""Compiled programs, which JAX keeps for later runs."""

import contextlib
import functools
import hashlib
import os
from pathlib import Path

import jax

from ccl_jax.runs import environment
from ccl_jax.runs.settings import AUTO

# Whether it was here that JAX was told to keep and read nothing.
_switched_off = False

# Ends the names of entries that begin with a sum of what follows.
_SUMMED = "-sha256"


def keep(folder: str | None) -> None:
    """Lets JAX keep compiled programs for later runs.

    Args:
      folder: Where; "auto" for JAX's own place if somebody has set one, else the user's cache if that
        can be written; "none" for nowhere, whatever JAX has been told; None to leave JAX as it is.
    """
    global _switched_off
    if folder == "none":
        _switched_off = _switched_off or jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if _switched_off:
        jax.config.update("jax_enable_compilation_cache", True)
        _switched_off = False
    if folder == AUTO:
        if jax.config.jax_compilation_cache_dir is not None:
            return
        folder = _user_cache()
    if folder is None:
        return
    _check_entries()
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _user_cache() -> str | None:
    """A folder for this kind of processor, as programs of another may not run here."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kind = hashlib.sha256(environment.processor().encode()).hexdigest()[:8]
    folder = Path(home, "ccl_jax", f"{jax.__version__}-{kind}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK | os.X_OK) else None


@functools.cache
def _check_entries() -> None:
    """Lets a damaged entry be thrown away, so that its program is compiled and kept again.

    JAX does not look: a changed bit in an entry can crash it, and a file that is there, even an empty
    one, is never written again. It has no public way to change that. Where its inside is another one
    than here, entries stay as JAX has them.
    """
    try:
        from jax._src import compilation_cache
        from jax._src.lru_cache import LRUCache
    except ImportError:
        return

    class Checked(LRUCache):
        """Keeps entries with their sums, under names of their own."""

        def get(self, key: str) -> bytes | None:
            entry = super().get(key + _SUMMED)
            if entry is None:
                return None
            sum_, program = entry[:32], entry[32:]
            if hashlib.sha256(program).digest() == sum_:
                return program
            with contextlib.suppress(OSError):
                Path(self.path, f"{key}{_SUMMED}-cache").unlink()
            return None

        def put(self, key: str, value: bytes) -> None:
            super().put(key + _SUMMED, hashlib.sha256(value).digest() + value)

    compilation_cache.LRUCache = Checked
