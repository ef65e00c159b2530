"""The table of methods and the table of their settings."""

import pytest

from ccl_jax import algorithms
from ccl_jax.training import schedules
from experiments import methods, settings


def test_the_table_lists_every_method(capsys):
    assert methods.main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, method in algorithms.REGISTRY.items():
        assert method.reference in lines[name]
        assert method.graph in lines[name]
    shown = lambda name: lines[name].split("  ")[0:]
    for name, exchanges, sends, gradients in [
        ("dsgdm-n", "1", "1 P d", "1"),
        ("dsgt", "1", "2 P d", "1"),
        ("momentum-tracking", "1", "2 P d", "1"),
        ("beer", "2", "2 P d", "1"),
        ("choco-sgd", "1", "1 P d", "1"),
        ("cga", "2", "2 P d", "1 + d"),
        ("comp-ngc", "2", "1.03 P d", "1 + d"),  # 1 + 1/32
        ("relaysgd", "1", "1 P d", "1"),
        ("fedavg", "1", "1 P d", "1"),
        ("all-reduce", "1", "2 P (N-1)/N", "1"),
        ("isolated", "0", "nothing", "1"),
    ]:
        cells = [cell.strip() for cell in shown(name) if cell.strip()]
        assert cells[1:4] == [exchanges, sends, gradients]


def test_one_method_in_detail(capsys):
    assert methods.main(["methods", "--algorithm=momentum-tracking"]) == 0
    text = capsys.readouterr().out
    for part in ("arXiv:2209.15505", "doubly stochastic", "2 P d", "start = 'zero'", "published"):
        assert part in text


@pytest.mark.parametrize(
    "flag, answer",
    [("--algorithm=dgsd", "did you mean 'dsgd'"), ("--algorithm=ccl", "loss"), ("x", "not a flag")],
)
def test_errors_exit_2(flag, answer, capsys):
    assert methods.main(["methods", flag]) == 2
    assert answer in capsys.readouterr().err


def test_every_method_has_settings_that_it_accepts():
    table = settings.table()
    assert set(table) == set(algorithms.REGISTRY)
    for name, entries in table.items():
        taken = algorithms.get(name).hyperparameters
        for entry in entries:
            hyper = {key: value for key, value in entry.values.items() if key in taken}
            if isinstance(rate := hyper.get("gossip_rate"), str):
                hyper["gossip_rate"] = schedules.gossip_rate(rate, epoch_steps=1)
            algorithms.make(name, **hyper)


def test_published_defaults_are_those_of_the_library():
    # The setting that CCL's authors run is what a user gets who sets nothing.
    (entry, *_) = settings.table()["qg-dsgdm-n"]
    defaults = algorithms.get("qg-dsgdm-n").hyperparameters
    assert {key: entry.values[key] for key in defaults} == defaults


@pytest.mark.parametrize(
    "entry, answer",
    [
        ({"status": "guessed", "source": "x"}, "published"),
        ({"status": "published"}, "with a source"),
        ({"status": "published", "source": "x", "betta": 1}, "betta"),
    ],
)
def test_bad_settings_are_refused(entry, answer):
    with pytest.raises(ValueError, match=answer):
        settings._setting("dsgdm-n", "bad", entry)
