"""Lets a trained run classify images, and shows where it errs.

    python -m experiments.predict --run=DIR
    python -m experiments.predict --run=DIR --images=FOLDER --output=classes.csv

Without --images it is shown the test set of the run: accuracy by agent and by class, what is taken for
what, and two pictures, of that and of the twelve mistakes of which the model is surest. Images of your
own, a folder, an image or a .npz, are brought to what the run was trained on, and it is said how; a line
of CSV has the file, the class and its probability. The model is the mean of all agents' models.
"""

import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import numpy as np
from absl import flags
from sklearn.metrics import confusion_matrix

from ccl_jax.runs import inputs, pictures, plots
from ccl_jax.runs.loading import LoadedRun
from ccl_jax.runs.summary import text_table
from experiments import cli, shown, trained
from experiments.shown import Shown

MISTAKES = 12


class Predictions(NamedTuple):
    """What models say of images.

    Attributes:
      classes: `[n]` of the chosen model.
      probabilities: `[n]` of these.
      seen: `[n]` bool, False where an image could not be read.
      by_agent: `[agents, n]` classes of every agent's model; `[0, n]` where they were not asked.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    seen: np.ndarray
    by_agent: np.ndarray


def predict(run: LoadedRun, images: Shown, agent: int | None, everybody: bool) -> Predictions:
    """Shows images to a model, and to all agents' if `everybody` is asked."""
    number, agents = len(images.names), run.config.agents if everybody else 0
    classes, probabilities = np.zeros(number, int), np.zeros(number)
    by_agent = np.zeros((agents, number), int)
    for indices, pixels in images.chunks():
        # From the logits, as in training: probabilities of 1 may be equal where those are not.
        logits = run.logits(pixels, agent)
        classes[indices] = np.asarray(logits).argmax(axis=-1)
        said = np.asarray(jax.nn.softmax(logits))
        probabilities[indices] = said[np.arange(len(said)), classes[indices]]
        for each in range(agents):
            by_agent[each, indices] = np.asarray(run.logits(pixels, each)).argmax(axis=-1)
    seen = ~np.isin(np.arange(number), list(images.left_out))
    return Predictions(classes, probabilities, seen, by_agent)


def report(run: LoadedRun, images: Shown, found: Predictions, whose: str) -> str:
    """Accuracy in all, by agent and by class, and what is taken for what, as text."""
    names, labels = run.dataset.class_names, images.labels[found.seen]
    counts = confusion(run, images, found)
    right = int(counts.trace())
    when = "" if run.row is None else f" (epoch {run.row['epoch']})"
    parts = [
        f"{run.config.label}, {whose}, step {run.step}{when}: {right} of {len(labels)} "
        f"{run.dataset.name} images right, {_percent(right, len(labels))}"
    ]
    if len(found.by_agent):
        hits = (found.by_agent[:, found.seen] == labels).sum(axis=1)
        rows = [[str(k), str(n), _percent(n, len(labels))] for k, n in enumerate(hits)]
        parts.append(text_table(("agent", "right", "accuracy"), rows))
    rows = []
    for k in np.flatnonzero(counts.sum(axis=1)):
        wrong = np.where(np.arange(len(names)) == k, 0, counts[k])
        most = f"{names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else ""
        total = counts[k].sum()
        rows.append([names[k], str(total), _percent(counts[k, k], total), most])
    parts.append(text_table(("class", "images", "accuracy", "most often taken for"), rows))
    if len(names) <= pictures.MOST_CLASSES:
        rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
        parts.append(text_table(("true class, taken for", *names), rows))
    return "\n\n".join(parts)


def confusion(run: LoadedRun, images: Shown, found: Predictions) -> np.ndarray:
    """`[classes, classes]` images, by true class and by what they were taken for."""
    every = range(run.dataset.num_classes)
    return confusion_matrix(images.labels[found.seen], found.classes[found.seen], labels=every)


def surest_mistakes(run: LoadedRun, images: Shown, found: Predictions) -> list[pictures.Mistake]:
    """Those of which the model is surest, at most `MISTAKES`."""
    wrong = np.flatnonzero(found.seen & (found.classes != images.labels))
    chosen = wrong[np.argsort(-found.probabilities[wrong], kind="stable")][:MISTAKES]
    names = run.dataset.class_names
    return [
        pictures.Mistake(
            image / run.dataset.scale,
            names[images.labels[k]],
            names[found.classes[k]],
            float(found.probabilities[k]),
        )
        for k, image in zip(chosen, images.read(chosen) if len(chosen) else (), strict=True)
    ]


def write_csv(file: TextIO, run: LoadedRun, images: Shown, found: Predictions) -> None:
    """A line for each image: file, class, probability, and its true class where that is known."""
    names, writer = run.dataset.class_names, csv.writer(file, lineterminator="\n")
    known = images.labels is not None
    writer.writerow(["file", "class", "probability", *(["label"] if known else [])])
    for k in np.flatnonzero(found.seen):
        true = [names[images.labels[k]]] if known else []
        said = (names[found.classes[k]], f"{found.probabilities[k]:.6f}")
        writer.writerow([images.names[k], *said, *true])


def draw(
    run: LoadedRun, images: Shown, found: Predictions, whose: str, files: tuple[Path, Path]
) -> None:
    """Draws what is taken for what, and the surest mistakes, and says where."""
    title = f"{run.config.label} on {run.dataset.name}, {whose}, step {run.step}"
    with plots.attempt(files[0]):
        files[0].parent.mkdir(parents=True, exist_ok=True)
        counts = confusion(run, images, found)
        pictures.confusion(counts, run.dataset.class_names, files[0], title)
        print(f"what is taken for what: {files[0]}")
    with plots.attempt(files[1]):
        pictures.mistakes(surest_mistakes(run, images, found), files[1], title)
        print(f"the surest mistakes: {files[1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the flags; returns the exit code."""

    def body() -> None:
        values = trained.define(f"{trained.CONSENSUS} or a number")
        for name, text in (
            ("images", "folder of images (or of a folder for each class), an image, or a .npz"),
            ("output", "CSV file to write; pictures go beside it"),
            ("data_dir", "where the run's dataset lies, if no longer where it was"),
        ):
            flags.DEFINE_string(name, None, text, flag_values=values)
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        output = values["output"].value
        output = None if output is None else cli.output(output)
        run = trained.load(values)
        agent = trained.agent(values, run)
        own, data_dir = (_path(values[name].value) for name in ("images", "data_dir"))
        _run(run, agent, own, output, data_dir)

    return cli.guard(body)


def _run(
    run: LoadedRun,
    agent: int | None,
    own: Path | None,
    output: Path | None,
    data_dir: Path | None,
) -> None:
    images = _test_set(run, data_dir) if own is None else shown.given(own, run.dataset)
    whose = "consensus model" if agent is None else f"agent {agent}"
    whole = images.labels is not None and (own is None or output is not None)
    found = predict(run, images, agent, everybody=whole)
    for note in images.notes():
        print(f"note: {note}", file=sys.stderr)
    if whole:
        print(report(run, images, found, whose), end="\n\n")
        draw(run, images, found, whose, _pictures(run, agent, output))
    elif images.labels is not None:
        right = int((found.classes == images.labels).sum())
        print(
            f"note: {right} of {len(images.labels)} are of the class that is given; with "
            "--output=FILE.csv tables and pictures are made, too",
            file=sys.stderr,
        )
    if output is not None or own is not None:
        with _opened(output) as file:
            write_csv(file, run, images, found)
    if output is not None:
        print(f"class of each image: {output}")


def _test_set(run: LoadedRun, data_dir: Path | None) -> Shown:
    config = run.config if data_dir is None else run.config.replace(data_dir=str(data_dir))
    return shown.test_set(inputs.load(config).dataset, run.dataset, config.max_unreadable)


def _pictures(run: LoadedRun, agent: int | None, output: Path | None) -> tuple[Path, Path]:
    """Where pictures go: beside the output, or into the run directory."""
    if output is not None:
        return tuple(
            output.with_name(f"{output.stem}-{what}.png") for what in ("confusion", "mistakes")
        )
    folder, whose = run.directory / "figures", "" if agent is None else f"-agent-{agent}"
    return folder / f"confusion{whose}.png", folder / f"mistakes{whose}.png"


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """A file to write, or stdout."""
    if output is None:
        yield sys.stdout
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        cli.whole(output) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "none"


if __name__ == "__main__":
    sys.exit(main())
