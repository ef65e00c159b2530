"""A run that goes on from a checkpoint ends exactly as one that was whole: every family, any moment."""

import shutil
from pathlib import Path

import jax
import pytest

from ccl_jax import algorithms
from ccl_jax.network.faults import Faults
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.training.schedules import AveragingRate
from tests.support.small_run import FAMILIES, Experiment, same, same_rows


def check_resume(experiment: Experiment, path: Path, *moments: int) -> None:
    """Runs to the end, saving at some moments on the way; goes on from each of them in a new run."""
    with Checkpoints(path, keep=99) as saved:

        def save(state, progress):
            if progress.step in moments:
                saved.save(state, progress)

        whole, rows = experiment.run(experiment.start(), on_progress=save)
    for moment in reversed(moments):
        state, progress = Checkpoints(path).restore(experiment.start())
        assert progress.step == moment and moment < whole.step
        resumed, resumed_rows = experiment.run(state, progress)
        same(resumed, whole)
        same_rows(resumed_rows, rows)
        shutil.rmtree(path / str(moment))


# With state of different kinds; the others are marked as slow.
KINDS = ("relaysgd", "dsgt", "comp-ngc")
NAMES = [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_resumes_to_the_bit(tmp_path, name):
    # Four steps an epoch; any moment but the very end, another one for every family.
    moment = 1 + list(FAMILIES).index(name) * 5 % 11
    check_resume(Experiment(name, FAMILIES[name]), tmp_path, moment)


def test_every_moment_resumes_to_the_bit(tmp_path):
    """Inside and at the end of epochs, with contrastive losses and compression, which remember."""
    experiment = Experiment(compressor="sign", lambdas=(0.1, 0.1), augmentation="flip-crop")
    check_resume(experiment, tmp_path, *range(1, 12))


@pytest.mark.parametrize("name, coins", [("k-gt", None), ("proxskip", 3)])
def test_rounds_of_local_steps_resume_to_the_bit(tmp_path, name, coins):
    check_resume(Experiment(name, local_steps=3, coins=coins), tmp_path, 4, 6, 8)


@pytest.mark.parametrize("name", ["motef", "adagossip"])
def test_compressed_trackers_and_a_growing_gossip_rate_resume_to_the_bit(tmp_path, name):
    rate = AveragingRate(0.1, 1.5, epoch_steps=4)
    talk = {"compressor": "top-k:0.3", "compression_start": "zero", "local_steps": 2}
    check_resume(Experiment(name, gossip_rate=rate, **talk), tmp_path, 1, 2, 7)


def test_prototypes_that_wait_for_the_next_exchange_resume_to_the_bit(tmp_path):
    """Also between exchanges, which are in every second step."""
    experiment = Experiment("dsgd", feature_losses=(("prototype", 0.5),), local_steps=2)
    check_resume(experiment, tmp_path, 1, 2, 7)
    plain = Experiment("dsgd", local_steps=2)
    end, _ = plain.run(plain.start())
    other, _ = experiment.run(experiment.start())
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), end.params, other.params)
    assert any(jax.tree.leaves(changed))


def test_models_that_moon_contrasts_with_resume_to_the_bit(tmp_path):
    """The mixed model and the one before it are kept from one exchange to the next; with SAM."""
    chosen = (("moon", 0.5), ("logit_distillation", 0.1))
    experiment = Experiment("dsgd", feature_losses=chosen, local_steps=3, sam_rho=0.1)
    check_resume(experiment, tmp_path, 2, 3, 7)
    kept = experiment.first.kept["models"]
    assert set(kept) == {"previous_features", "mixed_features"}


@pytest.mark.slow
def test_a_network_with_faults_resumes_to_the_bit(tmp_path):
    faults = Faults(drop=0.3, drop_burst=3, offline=0.2, offline_length=2, straggle=0.3, delay=2)
    check_resume(Experiment(lambdas=(0.1, 0.1), faults=faults), tmp_path, 3, 6, 8)


def test_noise_on_messages_resumes_to_the_bit(tmp_path):
    experiment = Experiment("dsgdm-n", lambdas=(0.1, 0.1), message_noise=0.01)
    check_resume(experiment, tmp_path, 1, 7)
    quiet, loud = Experiment("dsgdm-n", lambdas=(0.1, 0.1)), experiment
    ends = [each.run(each.start())[0].params for each in (quiet, loud)]
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), *ends)))


def test_exact_averages_from_an_epoch_on_resume_to_the_bit(tmp_path):
    experiment = Experiment("qg-dsgdm-n", lambdas=(0.1, 0.1), average_from=6)
    check_resume(experiment, tmp_path, 5, 6, 9)


def test_every_method_belongs_to_a_family_that_is_tested():
    modules = {method.build.__module__ for method in algorithms.REGISTRY.values()}
    ours = {m for m in modules if m.startswith("ccl_jax.")}
    assert ours == {algorithms.REGISTRY[name].build.__module__ for name in FAMILIES}
