"""Compiled programs that are kept for later runs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ccl_jax.runs import programs

KEEPING = """
import jax
from ccl_jax.runs import programs

programs.keep({folder!r})
total = jax.jit(lambda x: x.sum() + 1.5)(jax.numpy.arange(4.0))
print(jax.config.jax_compilation_cache_dir, float(total))
"""


def keeping(folder="auto", **variables):
    untold = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    program = [sys.executable, "-c", KEEPING.format(folder=folder)]
    done = subprocess.run(
        program, env=untold | variables, capture_output=True, text=True, check=True
    )
    where, value = done.stdout.split()
    assert float(value) == 7.5 and "persistent" not in done.stderr
    return where


def test_programs_are_kept_in_the_users_cache(tmp_path):
    where = keeping(XDG_CACHE_HOME=str(tmp_path))
    kept = list((tmp_path / "ccl_jax").rglob("*-cache"))
    assert kept and all(str(file.parent) == where for file in kept)


def test_none_keeps_and_reads_nothing_whatever_jax_has_been_told(tmp_path):
    keeping("none", JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_after_none_programs_are_kept_again(tmp_path):
    before = jax.config.jax_enable_compilation_cache
    programs.keep("none")
    assert not jax.config.jax_enable_compilation_cache
    programs.keep(None)
    assert jax.config.jax_enable_compilation_cache == before


DAMAGE = {
    "cut off": lambda entry: entry[:10],
    "empty": lambda entry: b"",
    "one bit": lambda entry: entry[:500] + bytes([entry[500] ^ 2]) + entry[501:],
    "longer": lambda entry: entry + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    keeping(str(tmp_path))
    kept = {file: file.read_bytes() for file in tmp_path.glob("*-cache")}
    for file, entry in kept.items():
        file.write_bytes(damage(entry))
    keeping(str(tmp_path))
    assert kept.keys() == set(tmp_path.glob("*-cache"))
    for file in kept:
        entry = file.read_bytes()
        assert entry[:32] == hashlib.sha256(entry[32:]).digest() and len(entry) > 500
    # And whole ones stay as they are.
    before = {file: file.stat().st_mtime_ns for file in kept}
    keeping(str(tmp_path))
    assert before == {file: file.stat().st_mtime_ns for file in kept}


def test_entries_of_others_are_not_touched(tmp_path):
    """Another program's, which knows no sums, in the same folder."""
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    keeping(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", **own)
    others = {file: file.read_bytes() for file in tmp_path.glob("*-cache")}
    keeping(str(tmp_path))
    both = set(tmp_path.glob("*-cache"))
    assert len(both) == 2 * len(others) > 0
    assert others == {file: file.read_bytes() for file in others}


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "ccl_jax").write_text("a file")
    assert keeping(XDG_CACHE_HOME=str(tmp_path)) == "None"


def test_a_cache_without_leave_to_write_is_not_used(tmp_path, monkeypatch):
    """As that of another user, which `mkdir` finds in its place; the superuser may write anywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = programs._user_cache()
    assert os.path.isdir(folder) and folder.startswith(str(tmp_path))
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (path == Path(folder) and mode & os.W_OK)
    )
    assert programs._user_cache() is None


def test_jaxs_own_cache_and_none_are_kept_to(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    assert keeping(XDG_CACHE_HOME=str(tmp_path), **own) == str(tmp_path / "own")
    assert keeping("none", XDG_CACHE_HOME=str(tmp_path)) == "None"
    assert not (tmp_path / "ccl_jax").exists()
