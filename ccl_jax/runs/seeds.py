"""Many seeds of one experiment: side by side in one program, or one after another.

Every seed is a run like any other, in a directory of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ccl_jax.data import datasets
from ccl_jax.devices import hosts
from ccl_jax.runs import inputs, packed, reporter, runner
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.runs.packed import Result
from ccl_jax.runs.runner import Run
from ccl_jax.runs.settings import AUTO
from ccl_jax.runs.signals import stop_signals
from ccl_jax.runs.summary import results_table, seeds_table
from ccl_jax.training.ledger import Diverged


def train_seeds(config: Config, seeds: Sequence[int]) -> dict[int, dict[str, Any] | Diverged]:
    """Trains one run for each seed, in `seed-N` below the work directory.

        summaries = ccl_jax.train_seeds(config.replace(workdir="runs/five"), range(5))

    Args:
      config: The settings but for the seed. `pack_seeds` says whether runs are one program. With
        `resume`, runs that have begun go on.
      seeds: The seeds.

    Returns:
      By seed, the summary as of `train`, or the `Diverged` with which it ended.

    Raises:
      checkpoints.Stopped, OSError, ValueError: As `runner.execute`.
    """
    workdir = RunDirectory(Path(config.workdir or runner.new_workdir(config)))
    runs = prepare(config, seeds, workdir.path)
    if config.workdir is None:
        runs = claim(workdir, runs)
    return dict(zip(seeds, execute(runs), strict=True))


def of(config: Config) -> range:
    """The seeds that the settings ask for."""
    return range(config.seed, config.seed + config.seeds)


def prepare(
    config: Config,
    seeds: Sequence[int],
    workdir: Path,
    dataset: datasets.Dataset | datasets.StreamedDataset | None = None,
) -> list[Run]:
    """`runner.prepare` for each seed, with the dataset read once.

    Args:
      config: The settings.
      seeds: The seeds.
      workdir: Where each has a directory.
      dataset: The dataset, if it is loaded already.

    Raises:
      ValueError: As `runner.prepare`; or there is no run to go on with.
    """
    runner.request_devices(config)  # Before processes agree on anything, which starts JAX.
    paths = {seed: workdir / f"seed-{seed}" for seed in seeds}
    if len(paths) < len(seeds) or not seeds:
        raise ValueError(f"seeds are {list(seeds)}; they must be different ones, at least one")
    begun = {seed for seed, path in paths.items() if (path / "config.json").exists()}
    if config.resume and not begun:
        raise ValueError(f"{workdir} holds no runs of these seeds; {_remedy(workdir)}")
    if not config.resume:
        with hosts.together():
            RunDirectory(workdir).check_free()
    if dataset is None:
        with hosts.together():
            dataset = inputs.first_set(config)
    one = config.replace(seeds=1)
    return [
        runner.prepare(
            one.replace(seed=seed, workdir=str(path), resume=config.resume and seed in begun),
            dataset,
        )
        for seed, path in paths.items()
    ]


def _remedy(workdir: Path) -> str:
    """What to do where there are no runs of the seeds that are asked for."""
    if (workdir / "config.json").exists():
        return "it is one run; leave out --seeds to go on with that"
    if below := RunDirectory(workdir).below():
        return f"it holds the runs {', '.join(below)}; give the flags with which they were started"
    return "leave out --resume to start them"


def claim(workdir: RunDirectory, runs: Sequence[Run]) -> list[Run]:
    """The runs in a directory that is made for them, which nobody has asked for by name."""
    planned = workdir.path
    workdir.claim()  # Another one may have taken that name by now.
    return [run.at(workdir.path / run.directory.path.relative_to(planned)) for run in runs]


def execute(runs: Sequence[Run]) -> list[Result]:
    """`runner.execute` for runs that differ in their seed: packed, or one after another.

    They are packed where the settings say so; by default on accelerators. What cannot be is said.

    Returns:
      A summary for each run, or the `Diverged` with which it ended; the others go on.
    """
    results: dict[int, Result] = {}
    with stop_signals():  # Which may come while one run ends, and are for all.
        for group in _groups(runs):
            together = [runs[k] for k in group]
            done = packed.execute(together) if len(group) > 1 else [_alone(together[0])]
            results |= zip(group, done, strict=True)
    return [results[k] for k in range(len(runs))]


def _alone(run: Run) -> Result:
    try:
        return runner.execute(run)
    except Diverged as error:
        hosts.note(f"seed {run.config.seed}: {error}")
        return error


def _groups(runs: Sequence[Run]) -> list[list[int]]:
    """Which runs are one program, by their numbers; says why others are not."""
    one_by_one, config = [[k] for k in range(len(runs))], runs[0].config
    wanted = {"yes": True, "no": False, AUTO: jax.default_backend() != "cpu"}[config.pack_seeds]
    if not wanted or len(runs) == 1:
        return one_by_one
    if obstacle := packed.obstacle(runs[0]):
        hosts.note(f"note: seeds run one after another, as they have {obstacle}")
        return one_by_one
    ended = [k for k, run in enumerate(runs) if runner.has_ended(run)]
    programs = {k: packed.program_of(run) for k, run in enumerate(runs) if k not in ended}
    groups: list[list[int]] = []
    for k, program in programs.items():
        for group in groups:
            if programs[group[0]] == program:
                group.append(k)
                break
        else:
            groups.append([k])
    if len(groups) > 1:
        first = programs[groups[0][0]]
        differ = [n for n in first if any(program[n] != first[n] for program in programs.values())]
        said = "; ".join(", ".join(str(runs[k].config.seed) for k in group) for group in groups)
        hosts.note(f"note: only seeds of equal {' and '.join(differ)} run together: {said}")
    return [*([k] for k in ended), *groups]


def main(config: Config) -> None:
    """The main of most experiments, of several seeds."""
    workdir = RunDirectory(Path(config.workdir or runner.new_workdir(config)))
    runs = prepare(config, of(config), workdir.path)
    if config.workdir is None:
        runs = claim(workdir, runs)
    results = execute(runs)
    tell({config.label: results})
    hosts.tell(f"run directory: {workdir.path}")
    good = [run for run, result in zip(runs, results, strict=True) if done([result])]
    if good and not config.quiet:
        hosts.tell(reporter.what_next(workdir.path, config, good[0].directory.path))
    check(results)


def tell(results: dict[str, Sequence[Result]]) -> None:
    """Prints the table of all runs that have ended well, by method, and that of means over seeds."""
    summaries = {name: done(results[name]) for name in results if done(results[name])}
    if not summaries:
        return
    each = [
        s | {"label": f"{s['label']}, seed {s['seed']}"} for own in summaries.values() for s in own
    ]
    hosts.tell(f"{results_table(each)}\n\n{seeds_table(list(summaries.values()))}")


def done(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The summaries of the runs that have not diverged."""
    return [result for result in results if not isinstance(result, Diverged)]


def check(results: Sequence[Result]) -> None:
    """Ends a main whose other seeds have been shown.

    Raises:
      Diverged: A run has.
    """
    if lost := [result for result in results if isinstance(result, Diverged)]:
        raise Diverged(
            f"{len(lost)} of {len(results)} runs have diverged; the last one: {lost[-1]}"
        )
