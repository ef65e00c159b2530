"""Checkpoints: whole or not there, the right ones kept, and damage noticed."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.network import Memory
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.training import TrainState
from ccl_jax.training.progress import Progress, Totals


def make_state(step: int, fill: float = 1.0, size: int = 5) -> TrainState:
    rng = np.random.default_rng(step)
    return TrainState(
        step=jnp.int32(step),
        params={"head": {"kernel": jnp.asarray(rng.normal(size=(2, size)) * fill, jnp.float32)}},
        model_state={"mean": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16)},
        algorithm=(jnp.float32(0.1), (), [jnp.arange(6).reshape(2, 3)]),
        kept={"prototypes": (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32),)},
        memory=Memory((), {"batch statistics": jnp.array([[True, False]]), "params": ()}),
        key=jax.random.key(7),
    )


def make_progress(step: int, accuracy: float | None = None) -> Progress:
    rows = ({"epoch": step, "step": step, "consensus_accuracy": accuracy, "loss": 0.1 + 0.2},)
    totals = Totals(3, 2, 1 / 3, 1, {"a": float("nan"), "b": float("inf")}, 0.1)
    return Progress(step, step + 1, 0, totals, (10**12, 7), 1.5, 0.5, 0, rows)


def saved(path, steps, keep=2, scores=None, **arguments):
    with Checkpoints(path, keep) as checkpoints:
        for k, step in enumerate(steps):
            state = make_state(step, **arguments)
            checkpoints.save(state, make_progress(step, scores[k] if scores else None))
    return checkpoints


def same(a: TrainState, b: TrainState) -> None:
    a, b = (s._replace(key=jax.random.key_data(s.key)) for s in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and isinstance(x, jax.Array)
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_to_the_bit_with_its_progress(tmp_path):
    saved(tmp_path / "c", [3])
    state, progress = Checkpoints(tmp_path / "c").restore(make_state(0))
    same(state, make_state(3))
    # NaN is not equal to itself; its text is.
    assert repr(progress) == repr(make_progress(3))
    assert progress.rows == make_progress(3).rows
    np.testing.assert_array_equal(
        jax.random.normal(state.key, 4), jax.random.normal(jax.random.key(7), 4)
    )


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path, [1, 2, 3, 4, 5], keep=2, scores=[0.1, 0.9, None, 0.3, 0.2])
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == 2
    # Another process knows the same from the files.
    assert Checkpoints(tmp_path).best() == 2


def test_a_dropped_checkpoint_is_gone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7, size=200_000), make_progress(7))
        assert checkpoints.steps() == [7]
        checkpoints.drop(7)
        assert checkpoints.steps() == [] and checkpoints.best() is None


def test_saving_does_not_need_the_buffers_any_more(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        state = make_state(1, size=200_000)
        before = np.array(state.params["head"]["kernel"])
        checkpoints.save(state, make_progress(1))
        state.params["head"]["kernel"].delete()
    state, _ = checkpoints_of(tmp_path).restore(make_state(0, size=200_000))
    np.testing.assert_array_equal(state.params["head"]["kernel"], before)


def test_a_checkpoint_that_is_being_written_counts(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    write = checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda *args: (time.sleep(0.2), write(*args)))
    checkpoints.save(make_state(1), make_progress(1))
    assert checkpoints.steps() == [1]


def checkpoints_of(path):
    warnings = []
    checkpoints = Checkpoints(path, warn=warnings.append)
    checkpoints.warnings = warnings
    return checkpoints


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    file = largest_file(folder / "state")
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder):
    file = largest_file(folder / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lambda folder: largest_file(folder / "state").unlink(),
        lambda folder: (folder / "progress.json").write_text("{}"),
        lambda folder: (folder / "checksums.json").write_text('{"state'),
        lambda folder: (folder / "checksums.json").unlink(),
        lambda folder: (folder / "checksums.json").write_text("[]"),
        lambda folder: (folder / "checksums.json").write_text("{}"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    saved(tmp_path, [1, 2])
    damage(tmp_path / "2")
    checkpoints = checkpoints_of(tmp_path)
    state, progress = checkpoints.restore(make_state(0))
    same(state, make_state(1))
    assert progress.step == 1
    assert len(checkpoints.warnings) == 1 and "2 is damaged" in checkpoints.warnings[0]
    # Coming by again, the run replaces it.
    with checkpoints:
        checkpoints.save(make_state(2), make_progress(2))
    same(checkpoints_of(tmp_path).restore(make_state(0))[0], make_state(2))


@pytest.mark.parametrize(
    "keep, steps, damaged, left", [(1, [2, 4], [4], [3]), (2, [1, 3, 4], [3, 4], [1, 2])]
)
def test_damaged_ones_are_not_kept_in_place_of_good_ones(tmp_path, keep, steps, damaged, left):
    saved(tmp_path, steps, keep=9)
    for step in damaged:
        truncate(tmp_path / str(step))
    with Checkpoints(tmp_path, keep=keep, warn=lambda _: None) as checkpoints:
        _, progress = checkpoints.restore(make_state(0))
        checkpoints.save(make_state(9), make_progress(progress.step + 1))
        assert checkpoints.best() not in damaged
    checkpoints = checkpoints_of(tmp_path)
    assert checkpoints.steps() == left
    same(checkpoints.restore(make_state(0))[0], make_state(9))


def test_if_all_are_damaged_the_run_does_not_start_again_by_itself(tmp_path):
    saved(tmp_path, [1, 2])
    truncate(tmp_path / "1")
    flip(tmp_path / "2")
    with pytest.raises(ValueError, match=r"all checkpoints .* damaged"):
        checkpoints_of(tmp_path).restore(make_state(0))


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(make_state(0)) is None
    # What was being written when a run was killed does not count.
    (tmp_path / ".partial" / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path).restore(make_state(0)) is None
    assert saved(tmp_path, [4]).steps() == [4]


def test_a_state_of_another_shape_is_refused(tmp_path):
    saved(tmp_path, [1])
    with pytest.raises(ValueError, match="does not fit this configuration"):
        Checkpoints(tmp_path).restore(make_state(0, size=6))
    other = make_state(0)._replace(params={"other": jnp.zeros(3)})
    with pytest.raises(ValueError, match="does not fit this configuration"):
        Checkpoints(tmp_path).restore(other)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    assert saved(tmp_path, [1], fill=np.inf).steps() == []


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    checkpoints.save(make_state(1), make_progress(1))
    with pytest.raises(OSError, match="could not be written"):
        checkpoints.wait()


def test_checkpoints_hold_text_and_arrays_only(tmp_path):
    """Nothing is pickled: every file is JSON or one of tensorstore's."""
    saved(tmp_path, [1])
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert not file.read_bytes().startswith(b"\x80"), file  # a pickle's first byte
    json.loads((tmp_path / "1" / "progress.json").read_text())
