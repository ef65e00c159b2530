"""What curves are drawn against, and how far their points are apart."""

import pytest

from experiments.report import command, outcome
from experiments.study import catalogue
from tests.support.reported import STUDY, made_up


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "mine.toml"
    path.write_text(STUDY)
    return catalogue.load(str(path))


def test_megabytes_are_those_of_the_mean_agent(study):
    """As in the table, 2.5 MB; the busiest sends twice as much, and time is modelled by it."""
    job = study.jobs()[0]
    record, most = made_up(job), "bytes_sent_per_agent_max"
    record["summary"][most], record["rows"][most] = 5_000_000, [2_000_000, 5_000_000]
    found = outcome.Outcome(study, [(job, record)])
    assert found.along(record, "megabytes") == [1.0, 2.5]
    assert found.along(record, "seconds") == pytest.approx([12 * 0.11 + 0.16, 24 * 0.11 + 0.4])


def test_rounds_are_exchanges(study):
    job = study.jobs()[0]
    record = made_up(job)
    record["settings"] |= {"local_steps": 5}
    found = outcome.Outcome(study, [(job, record)])
    # Of the steps 0, 5, 10, and then 15 and 20.
    assert found.along(record, "rounds") == [3, 5]


@pytest.mark.parametrize(
    ("steps", "said"), [([12, 24], "12"), ([12], "12"), ([12, 60, 120, 132], "60"), ([], "no")]
)
def test_how_far_evaluations_are_apart(steps, said, study):
    """With --eval_every=auto there is one after the first epoch, whatever lies between the others."""
    job = study.jobs()[0]
    record = made_up(job) | {"rows": {"step": steps, "bytes_sent_per_agent_max": steps}}
    text = command._when_reached(outcome.Outcome(study, [(job, record)]))
    assert f"of one every {said} rounds." in text
