"""The plans of all studies expand to runs that can be made."""

import functools

import pytest

from ccl_jax import algorithms, graphs, models
from experiments.study import catalogue
from tests.support import tiny_main  # noqa: F401 (registers the model "mlp")


def cells(name):
    table = catalogue.tomllib.loads((catalogue.FOLDER / f"{name}.toml").read_text())
    return [(name, data) for data in table["data"]]


ALL = [pair for name in catalogue.names() for pair in cells(name)]


def test_all_are_there():
    expected = (
        "first_three main_table agents ablation lambda_alpha domain_shift rounds orthogonality"
    )
    expected += " partitions heterogeneity_measure stability claim feature_losses"
    assert set(catalogue.names()) == set(expected.split())
    assert {"digits", "fmnist", "cifar10"} <= {data for name, data in ALL if name == "first_three"}


@functools.cache
def graph(topology, agents, weights, stochastic):
    return graphs.make(topology, agents, weights=weights, stochastic=stochastic)


@functools.cache
def check_method(name, hyperparameters, *of_graph):
    method = algorithms.get(name)
    algorithms.make(name, **dict(hyperparameters))
    method.check(graph(*of_graph, method.stochastic), **dict(hyperparameters))


@pytest.mark.parametrize("name, where", ALL)
def test_every_study_file_expands_to_runs_that_can_be_made(name, where):
    plan = catalogue.load(name, where)
    jobs = [*plan.tuning_jobs(), *plan.jobs(catalogue._any_choices(plan))]
    assert len(jobs) >= len(plan.seeds) * len(plan.methods) * len(plan.cells)
    if where == "digits":
        assert plan.seeds == (0, 1, 2, 3, 4)
    assert plan.title != plan.name and plan.claim and plan.question
    for config in (job.config for job in jobs):
        hyperparameters = tuple(config.hyperparameters().items())
        check_method(
            config.algorithm, hyperparameters, config.topology, config.agents, config.weights
        )
    models.make(config.model, 10, norm=config.norm)
