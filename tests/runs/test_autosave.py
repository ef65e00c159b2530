"""When a run saves: after epochs or minutes, at its end, and at a signal, which it then obeys."""

import signal

import pytest

from ccl_jax.runs.checkpoints import Autosave, Checkpoints, Stopped
from ccl_jax.training.progress import Progress
from tests.support.small_run import EPOCHS, Experiment, same, same_rows


def test_a_signal_saves_and_leaves_after_the_step(tmp_path):
    experiment = Experiment()
    whole, rows = experiment.run(experiment.start())
    steps = 0

    def stop() -> int:
        nonlocal steps
        steps += 1
        return signal.SIGTERM if steps == 7 else 0

    with Checkpoints(tmp_path) as saved, pytest.raises(Stopped, match="--resume") as stopped:
        autosave = Autosave(saved, EPOCHS, stop=stop)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert stopped.value.signal == signal.SIGTERM
    resumed, resumed_rows = experiment.run(*Checkpoints(tmp_path).restore(experiment.start()))
    same(resumed, whole)
    same_rows(resumed_rows, rows)


def test_autosave_keeps_its_times(tmp_path):
    experiment = Experiment()
    with Checkpoints(tmp_path, keep=99) as saved:
        autosave = Autosave(saved, EPOCHS, epochs=2)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert saved.steps() == [8, 12]  # after the second epoch, and at the end
    with Checkpoints(tmp_path / "always", keep=99) as saved:
        autosave = Autosave(saved, EPOCHS, minutes=1e-9)
        experiment.run(experiment.start(), due=autosave.due, on_progress=autosave)
    assert saved.steps() == list(range(1, 13))


def test_what_was_asked_within_an_epoch_does_not_answer_for_its_end(tmp_path):
    """A signal that came in between is heard at the end of the epoch."""
    experiment, asked = Experiment(), []
    state = experiment.start()

    def stop() -> int:
        asked.append(len(asked))
        return signal.SIGTERM if len(asked) == 2 else 0

    with Checkpoints(tmp_path) as saved:
        autosave = Autosave(saved, EPOCHS, stop=stop)
        assert not autosave.due()()
        with pytest.raises(Stopped, match="after step 4"):
            autosave(state, Progress(step=4, epoch=2))
    assert saved.steps() == [4] and asked == [0, 1]
