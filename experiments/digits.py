"""Trains decentralized agents on scikit-learn's handwritten digits: real data, no download.

    python -m experiments.digits

compares DSGDm-N, QG-DSGDm-N and CCL on 8 agents in a ring whose data differ strongly. With
--algorithm that one alone runs:

    python -m experiments.digits --algorithm=qg-dsgdm-n --lambda_m=0.1 --lambda_d=0.1
"""

import sys
from pathlib import Path

from ccl_jax.data import datasets
from ccl_jax.devices import hosts
from ccl_jax.runs import plots, reporter, runner
from ccl_jax.runs.config import Config
from ccl_jax.runs.summary import results_table
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
    # A comparison that is resumed starts those of its runs that had not begun.
    begun = lambda name: (workdir / name / "config.json").exists()
    resume = {name: config.resume and begun(name) for name in contestants}
    if config.resume and not any(resume.values()):
        raise ValueError(f"{workdir} holds no comparison; leave out --resume to start one")
    with hosts.together():
        dataset = datasets.load(config.dataset, config.data_dir)
    runs = [
        runner.prepare(
            config.replace(workdir=str(workdir / name), resume=resume[name], **settings), dataset
        )
        for name, settings in contestants.items()
    ]
    together = runner.RunDirectory(workdir)
    if config.workdir is None:
        together.claim()  # Another one may have taken that name by now.
        runs = [run.at(together.path / name) for run, name in zip(runs, contestants, strict=True)]
    summaries = [runner.execute(run) for run in runs]

    if not hosts.is_first():
        return
    together.write_json("comparison.json", {s["label"]: s for s in summaries})
    curves = {run.config.label: run.directory.read_metrics() for run in runs}
    title = (
        f"{config.dataset}, {config.agents} agents on a {config.topology}, alpha {config.alpha:g}"
    )
    with plots.attempt(together.figures / "accuracy.png"):
        plots.accuracy_curves(curves, together.figures / "accuracy.png", title)
    split = runs[0].directory.figures / "partition.png"
    print(results_table(summaries))
    print(f"accuracy against rounds: {together.figures / 'accuracy.png'}")
    print(f"who holds which classes: {split}")
    print(f"run directory: {together.path}")
    if not config.quiet:
        print(reporter.what_next(together.path, config, together.path / "ccl"))


if __name__ == "__main__":
    sys.exit(cli.run_main(main, DEFAULTS, __doc__))
