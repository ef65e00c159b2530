"""Trains decentralized agents on scikit-learn's handwritten digits: real data, no download.

    python -m experiments.digits

compares DSGDm-N, QG-DSGDm-N and CCL on 8 agents in a ring whose data differ strongly. With
--algorithm that one alone runs:

    python -m experiments.digits --algorithm=qg-dsgdm-n --lambda_m=0.1 --lambda_d=0.1
"""

import sys
from pathlib import Path

from ccl_jax.devices import hosts
from ccl_jax.runs import inputs, plots, reporter, runner, seeds
from ccl_jax.runs.config import Config
from ccl_jax.runs.signals import stop_signals
from ccl_jax.runs.summary import results_table
from ccl_jax.training.progress import Row
from experiments import cli

DEFAULTS = Config(dataset="digits", agents=8, alpha=0.1, model="digits-cnn", lr=0.1, epochs=60)


def main(config: Config, given: frozenset[str] = frozenset()) -> None:
    """One run if an algorithm is named, else a comparison."""
    if "algorithm" in given:
        runner.main(config)
    else:
        compare(config, given)


def compare(config: Config, given: frozenset[str]) -> None:
    """DSGDm-N, QG-DSGDm-N and CCL, one after another, on the same split and order of data."""
    runner.request_devices(config)  # Before processes agree on anything, which starts JAX.
    workdir = Path(config.workdir or runner.new_workdir(config))
    if not config.resume:
        with hosts.together():
            runner.RunDirectory(workdir).check_free()
    plain = {"lambda_m": 0.0, "lambda_d": 0.0, "feature_loss": ()}
    # The losses that were given, if any.
    ccl = {} if given & set(plain) else {"lambda_m": 0.1, "lambda_d": 0.1}
    contestants = {
        "dsgdm-n": {"algorithm": "dsgdm-n", **plain},
        "qg-dsgdm-n": {"algorithm": "qg-dsgdm-n", **plain},
        "ccl": {"algorithm": "qg-dsgdm-n", **ccl},
    }
    if len({config.replace(**settings).label for settings in contestants.values()}) < 3:
        raise ValueError(
            "a comparison has CCL beside the methods alone, and its losses are off: give one a weight, "
            "or --algorithm for a single run"
        )
    # A comparison that is resumed starts those of its runs that had not begun.
    begun = lambda name: any((workdir / name).glob("**/config.json"))
    resume = {name: config.resume and begun(name) for name in contestants}
    if config.resume and not any(resume.values()):
        remedy = (
            "it is a single run, which goes on with --algorithm and its other flags"
            if (workdir / "config.json").exists()
            else "leave out --resume to start one"
        )
        raise ValueError(f"{workdir} holds no comparison; {remedy}")
    with hosts.together():
        dataset = inputs.first_set(config)
    runs = []
    for name, settings in contestants.items():
        one = config.replace(workdir=str(workdir / name), resume=resume[name], **settings)
        runs += (
            [runner.prepare(one, dataset)]
            if config.seeds == 1
            else seeds.prepare(one, seeds.of(config), workdir / name, dataset)
        )
    together = runner.RunDirectory(workdir)
    if config.workdir is None:
        runs = seeds.claim(together, runs)
    by_method = [runs[k : k + config.seeds] for k in range(0, len(runs), config.seeds)]
    # One that diverges ends a comparison, but not where each method has several seeds.
    execute = seeds.execute if config.seeds > 1 else lambda own: [runner.execute(own[0])]
    with stop_signals():  # Which may come while one run ends, and are for all.
        results = {own[0].config.label: execute(own) for own in by_method}
    if hosts.is_first():
        _report(config, by_method, results, together)
    seeds.check([result for own in results.values() for result in own])


def _report(
    config: Config,
    runs: list[list[runner.Run]],
    results: dict[str, list[seeds.Result]],
    together: runner.RunDirectory,
) -> None:
    """Shows a comparison, by method and seed."""
    title = (
        f"{config.dataset}, {config.agents} agents on a {config.topology}, alpha {config.alpha:g}"
    )
    if config.seeds == 1:
        together.write_json("comparison.json", {name: own[0] for name, own in results.items()})
        print(results_table([own[0] for own in results.values()]))
    else:
        title += f", seed {config.seed}"
        seeds.tell(results)
    curves = _where_all_are({own[0].config.label: own[0].directory.read_metrics() for own in runs})
    with plots.attempt(together.figures / "accuracy.png"):
        file = together.figures / "accuracy.png"
        plots.accuracy_curves(curves, file, title, config.local_steps)
        print(f"accuracy against {plots.step_unit(config.local_steps)}: {file}")
    split = runs[0][0].directory.figures / "partition.png"
    print(f"who holds which classes: {split}")
    print(f"run directory: {together.path}")
    # The last method's first seed that has not diverged.
    good = [
        run
        for own in reversed(runs)
        for run, result in zip(own, results[own[0].config.label], strict=True)
        if seeds.done([result])
    ]
    if good and not config.quiet:
        print(reporter.what_next(together.path, config, good[0].directory.path))


def _where_all_are(curves: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows at whose step all methods that came so far were evaluated.

    By default those that compute more are evaluated more often; with more points a curve would look less
    steady than the others.
    """
    known = {
        name: {row["step"]: row for row in rows if "consensus_accuracy" in row}
        for name, rows in curves.items()
    }
    shared = lambda step: all(
        step in steps or step > max(steps, default=0) for steps in known.values()
    )
    return {name: [steps[k] for k in steps if shared(k)] for name, steps in known.items()}


if __name__ == "__main__":
    sys.exit(cli.run_main(main, DEFAULTS, __doc__))
