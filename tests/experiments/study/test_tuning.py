"""Tuning: the same rule for all, more seeds for what is good, controls, and leads within the spread."""

import math

import pytest

from experiments.study import catalogue, command, records, tuning
from tests.support import tiny_main  # noqa: F401 (registers the model "mlp")
from tests.support.studies import SMALL, fake_record

TUNE = """
[tune]
lr = [0.1, 0.03, 0.01]
validation = 0.25
seeds = [8, 9]
"""


@pytest.fixture
def load(tmp_path):
    """Loads a study from a text."""

    def load(text: str) -> catalogue.Study:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return catalogue.load(str(path))

    return load


def finish(study, make=fake_record):
    """All records that tuning asks for, as they come."""
    known = {}
    while missing := [j for j in tuning.wanted(study, known) if j.identity not in known]:
        known |= {job.identity: make(job.config) for job in missing}
    return known


def test_tuning_takes_the_best_rate_on_held_out_data(load):
    text = SMALL + TUNE.replace("[0.1, 0.03, 0.01]", "[0.03, 0.1, 10.0]") + "each = ['graph']\n"
    text += '[axes.graph]\n"r" = {}\n"s" = { topology = "full" }\n'
    text += '[axes.more]\n"1" = {}\n"2" = { alpha = 2.0 }\n'
    plan = load(text)
    jobs = plan.tuning_jobs()
    # The same budget for all: 2 methods x 2 graphs x 3 rates x 2 seeds; `more` stays at its first.
    assert len(jobs) == 24 and {job.cell for job in jobs} == {("r", "1"), ("s", "1")}
    assert {job.config.validation for job in jobs} == {0.25}
    known = finish(plan)
    assert set(known) == {job.identity for job in jobs}
    choices = tuning.choices(plan, known)
    assert [choice["lr"] for choice in choices.values()] == [0.1] * 4
    assert {job.config.lr for job in plan.jobs(choices)} == {0.1}
    assert {job.config.validation for job in plan.jobs(choices)} == {0.0}
    header, rows = tuning.table_of_tuning(plan, known)
    assert header == ["graph", "more", "method", "lr 0.03", "lr 0.1", "lr 10", "chosen"]
    # 0.9 - 0.07 - 0.01 * 8.5, and so on.
    assert rows[0][3:] == ["74.50 ± 0.71", "81.50 ± 0.71 *", "diverged", "0.1"]
    lost = {name: record | {"status": "diverged"} for name, record in known.items()}
    assert {choice["lr"] for choice in tuning.choices(plan, lost).values()} == {0.03}
    assert "0.03 (edge of the grid)" in tuning.table_of_tuning(plan, lost)[1][0][-1]


def test_what_is_tuned_in_part_has_a_table_already(load):
    plan = load(SMALL + TUNE)
    first = plan.tuning_jobs()[0]
    rows = tuning.table_of_tuning(plan, {first.identity: fake_record(first.config)})[1]
    assert [row[-1] for row in rows] == ["not finished"] * len(plan.methods)
    assert rows[0][1] != "–" and rows[-1][1:-1] == ["–"] * 3


def test_options_are_tried_with_every_rate_and_for_tuning_epochs_only(load):
    text = SMALL + TUNE + "epochs = 1\n"
    text += '[tune.options.ccl]\n"small" = { lambda_m = 0.01 }\n'
    text += '"huber" = { distance = "huber", lambda_d = 0.0 }\n'
    plan = load(text)
    assert list(plan.candidates("ccl"))[:4] == [
        *("small, lr 0.1", "small, lr 0.03", "small, lr 0.01", "huber, lr 0.1")
    ]
    assert {job.config.epochs for job in plan.tuning_jobs()} == {1}
    # Huber's distance is worth two points here.
    known = finish(plan, lambda config: better(config, 0.02 * (config.distance == "huber")))
    plain, ccl = (job.config for job in plan.jobs(tuning.choices(plan, known))[:2])
    assert (plain.lambda_m, plain.lr, plain.epochs) == (0.0, 0.1, 2)
    assert (ccl.distance, ccl.lambda_m, ccl.lambda_d) == ("huber", 0.1, 0.0)
    header, rows = tuning.table_of_tuning(plan, known)
    assert header[:3] == ["method", "option", "lr 0.1"]
    assert [row[:2] for row in rows] == [["plain", ""], ["ccl", "small"], ["ccl", "huber"]]
    # 0.9 - 0.085 + 0.02.
    assert rows[2][2] == "83.50 ± 0.71 *" and rows[1][-1] == ""


def better(config, by):
    record = fake_record(config)
    record["summary"] = {name: value + by for name, value in record["summary"].items()}
    return record


def test_the_best_half_goes_on_to_the_next_seed_and_never_less_than_two(load):
    plan = load(SMALL + TUNE.replace("0.01]", "0.01, 0.3, 0.2]").replace("[8, 9]", "[7, 8, 9]"))
    assert len(tuning.wanted(plan, finish(plan))) == 2 * 3 * 5  # keep = 1: all.
    text = TUNE.replace("0.01]", "0.01, 0.3, 0.2]").replace("[8, 9]", "[7, 8, 9]") + "keep = 0.5\n"
    plan = load(SMALL + text)
    first = tuning.wanted(plan, {})
    assert len(first) == 10 and {job.config.seed for job in first} == {7}
    jobs = tuning.wanted(plan, finish(plan))
    by_seed = {
        seed: {job.config.lr for job in jobs if job.config.seed == seed} for seed in (7, 8, 9)
    }
    # 0.9 - |lr - 0.1|: half of five is three, half of three two.
    assert by_seed[8] == {0.1, 0.03, 0.01} and by_seed[9] == {0.1, 0.03}
    assert len(jobs) == 2 * (5 + 3 + 2)
    choice = tuning.chosen(plan, finish(plan))["ccl", ()]
    assert (choice.label, choice.runner_up) == ("lr 0.1", "lr 0.03")
    assert choice.lead == pytest.approx(0.07) and choice.spread == pytest.approx(0, abs=1e-12)
    # Every second and third run of what was first or second is made; no choice before that.
    part = finish(plan)
    del part[jobs[-1].identity]
    assert ("ccl", ()) not in tuning.chosen(plan, part)


def test_diverged_counts_as_chance():
    record = {"status": "diverged", "classes": 10, "summary": {"consensus_accuracy": 0.7}}
    assert tuning.score(record, "consensus_accuracy") == 0.1
    del record["classes"]
    assert tuning.score(record, "consensus_accuracy") == 0.0
    assert tuning.score(record | {"status": "done"}, "consensus_accuracy") == 0.7


def test_a_lead_within_the_spread_is_said_and_the_runner_up_runs(load):
    plan = load(SMALL + TUNE)

    def noisy(config):
        return better(config, 0.05 if config.lr == 0.1 and config.seed == 8 else 0.0)

    def swing(config):
        return better(config, -0.12 if config.lr == 0.1 and config.seed == 9 else 0.05)

    clear, close = finish(plan, noisy), finish(plan, swing)
    assert tuning.runner_up_jobs(plan, clear) == []  # Leads 12 and 7: mean 9.5, spread 3.5.
    choice = tuning.chosen(plan, close)["plain", ()]
    # 0.1 is 7 points ahead with seed 8, and 10 behind with seed 9.
    assert (choice.label, choice.runner_up) == ("lr 0.03", "lr 0.1")
    assert choice.lead == pytest.approx(0.015)
    assert choice.spread == pytest.approx(0.17 / math.sqrt(2))
    jobs = tuning.runner_up_jobs(plan, close)
    assert {(job.method, job.config.lr) for job in jobs} == {("plain", 0.1), ("ccl", 0.1)}
    assert len(jobs) == 4 and {job.config.validation for job in jobs} == {0.0}
    told = tuning.table_of_tuning(plan, close)[1][0][-1]
    assert told == "0.03; not clearly ahead of lr 0.1 (1.50 points, seeds' spread 12.02)"
    both = [*plan.jobs(tuning.choices(plan, close)), *jobs]
    close |= {job.identity: fake_record(job.config) for job in both}
    header, rows = tuning.table_of_runners_up(plan, close)
    assert header[0] == "method" and len(rows) == 2
    # 0.9 - 0.07 - 0.005 and 0.9 - 0.005, on the test set.
    assert rows[0] == [
        *("plain", "lr 0.03", "82.50 ± 0.71", "lr 0.1", "89.50 ± 0.71"),
        *("+7.00 [+7.00, +7.00]", "higher"),
    ]
    lost = close | {jobs[0].identity: close[jobs[0].identity] | {"status": "diverged"}}
    row = tuning.table_of_runners_up(plan, lost)[1][0]
    assert row[4].endswith(", 1 of 2 diverged") and "diverged" not in row[2]


def test_with_one_seed_there_is_no_spread(load):
    plan = load(SMALL + TUNE.replace("[8, 9]", "[8]"))
    known = finish(plan)
    assert math.isnan(tuning.chosen(plan, known)["plain", ()].spread)
    assert tuning.runner_up_jobs(plan, known) == []


def test_a_control_takes_the_learning_rate_of_another(load):
    text = SMALL.replace('"ccl" =', '"control" = { algorithm = "dsgdm-n" }\n"ccl" =')
    plan = load(text + TUNE + '[tune.same_lr]\ncontrol = "ccl"\n')
    assert {job.method for job in plan.tuning_jobs()} == {"plain", "ccl"}
    # Plain is best at 0.1, CCL at 0.03.
    known = finish(plan, lambda c: better(c, 0.2 * (c.lambda_m > 0 and c.lr == 0.03)))
    rates = {job.method: job.config.lr for job in plan.jobs(tuning.choices(plan, known))}
    assert rates == {"plain": 0.1, "control": 0.03, "ccl": 0.03}
    control = next(job for job in plan.jobs(tuning.choices(plan, known)) if job.method == "control")
    assert control.config.lambda_m == 0.0


@pytest.mark.parametrize(
    "more, message",
    [
        ("keep = 0.0", "tune.keep is 0; it must be above 0 and at most 1"),
        ("each = [['a']]", "tune.each: ['a'] must be a text"),
        ("[tune.same_lr]\nccl = 1", "tune.same_lr.ccl: 1 must be a text"),
        ("epochs = 0.5", "epochs of tune is 0.5; it must be a whole number"),
        ("eval_every = 0.5", "eval_every of tune is 0.5; it must be a whole number"),
        ("[tune.options.col]", "unknown method 'col': did you mean 'ccl'"),
        ("[tune.options.ccl]", "tune.options.ccl is {}; it must be a table LABEL"),
        ("[tune.options.ccl]\na = { lambda = 1 }", "unknown setting 'lambda'"),
        ("[tune.options.ccl]\na = {}\nb = {}", "'a' and 'b' have the same settings"),
        ('[tune.same_lr]\nccl = "ccl"', "tune.same_lr.ccl = 'ccl': one is tuned, and the other"),
        ('[tune.same_lr]\nccl = "plan"', "unknown method 'plan'"),
    ],
)
def test_what_cannot_be_tuned_is_said(load, more, message):
    with pytest.raises(ValueError) as said:
        load(SMALL + TUNE + more + "\n")
    assert message in str(said.value)


@pytest.mark.parametrize("part", [0, 0.0, 1.0, -0.5])
def test_what_is_held_out_is_a_part(load, part):
    """With none held out, rates would be chosen on the test set."""
    with pytest.raises(ValueError, match=f"tune.validation is {part:g}; it must be above 0 and"):
        load(SMALL + TUNE.replace("validation = 0.25", f"validation = {part}"))


def test_only_a_part_is_tuned_and_run_and_the_rest_goes_on_later(load, tmp_path, monkeypatch):
    text = SMALL + TUNE + "each = ['alpha']\n"
    text += '[axes.alpha]\n"alpha 1" = {}\n"alpha 10" = { alpha = 10.0 }\n'
    load(text)
    made = []
    monkeypatch.setattr(
        records, "run", lambda config, _: made.append(config) or fake_record(config)
    )
    argv = ["study", f"--study={tmp_path}/mine.toml", f"--results={tmp_path}"]
    assert command.main([*argv, "--only=alpha 1", "--tune_only"]) == 0
    file = tmp_path / "mine-digits" / "runs.jsonl"
    assert len(made) == 12 == len(records.read(file)) and {c.alpha for c in made} == {1.0}
    assert {c.validation for c in made} == {0.25}
    assert command.main([*argv, "--only=alpha 1"]) == 0
    assert [c.validation for c in made[12:]] == [0.0] * 4
    assert command.main(argv) == 0
    assert len(made) == 2 * 16 == len(records.read(file))


def test_parts_of_a_study(load):
    study = catalogue.load("main_table", "cifar10")
    part = study.part(["ring 16"])
    assert {job.cell for job in part.jobs()} == {
        ("ring 16", "alpha 0.1"), ("ring 16", "alpha 0.01"),
    }  # fmt: skip
    assert part.total == 3 * 2 * 6 and len(part.jobs()) == part.total
    assert part.options == '--study=main_table --data=cifar10 --only="ring 16"'
    # What a method is compared with stays.
    assert list(study.part(["ccl + relay"]).methods) == [
        *("QG-DSGDm-N", "RelaySGD (chain)", "CCL + RelaySGD (chain)")
    ]
    # A label as a whole is stronger than a part of it.
    assert study.part(["alpha 0.1", "Dyck 32"]).cells == [("Dyck 32", "alpha 0.1")]
    # Rates are those of the first graph all the same.
    tuned = catalogue.load("main_table").part(["Dyck 32"])
    assert {job.cell for job in tuned.tuning_jobs()} == {("ring 16", "alpha 0.1")}
    with pytest.raises(
        ValueError, match="'ring 17' is in no label of main_table on cifar10; they are"
    ):
        study.part(["ring 17"])
    with pytest.raises(ValueError, match="no cell of main_table has all of: ring 16; ring 32"):
        study.part(["ring 16", "ring 32"])
    # A cell has something of each; a method is one of them.
    part = study.part(["RelaySGD (chain)", "alpha 0.1", "DSGDm-N", "ring 16"])
    assert part.cells == [("ring 16", "alpha 0.1")]
    assert list(part.methods) == ["DSGDm-N", "QG-DSGDm-N", "RelaySGD (chain)"]
    assert list(study.part(["CCL + DSGDm-N", "QG-DSGDm-N"]).methods) == list(
        study.part(["QG-DSGDm-N", "CCL + DSGDm-N"]).methods
    )


def test_runs_of_tuning_may_have_a_length_and_a_cadence_of_their_own(load):
    plan = load(SMALL + TUNE + "epochs = 2\neval_every = 2\n")
    made = {(job.config.epochs, job.config.eval_every) for job in tuning.wanted(plan, {})}
    assert made == {(2, 2)}
    lengths = {(job.config.epochs, job.config.eval_every) for job in plan.jobs()}
    assert lengths == {(plan.defaults.epochs, plan.defaults.eval_every)} != made
