"""What a run ends with: `summary.json`, and the table that a terminal shows of several."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ccl_jax.data import partition
from ccl_jax.graphs.topology import Topology
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import made_with
from ccl_jax.training.loop import Timing
from ccl_jax.training.progress import Row


def summarize(
    config: Config,
    topology: Topology,
    counts: np.ndarray,
    last: Row,
    timing: Timing,
    *,
    parameters: int,
    best_checkpoint: int | None,
    objective: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
      config: Of the run.
      topology: Who talked to whom.
      counts: `[agents, classes]` training samples.
      last: The row of metrics of the last epoch.
      timing: Where the time went.
      parameters: Numbers in one agent's model.
      best_checkpoint: Step of the kept checkpoint with the highest consensus accuracy.
      objective: The losses' settings.
    """
    return {
        "label": config.label,
        "dataset": config.dataset,
        "algorithm": config.algorithm,
        "lambda_m": config.lambda_m,
        "lambda_d": config.lambda_d,
        "topology": topology.name,
        "agents": config.agents,
        "alpha": config.alpha,
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": timing.steps,
        "model": config.model,
        "parameters": parameters,
        **{k: v for k, v in last.items() if k not in ("epoch", "step", "seconds_training")},
        **objective,
        "feature_losses": dict(objective["feature_losses"]),
        "spectral_gap": topology.spectral_gap,
        "smallest_eigenvalue": topology.smallest_eigenvalue,
        "label_divergence": partition.label_divergence(counts),
        "samples_per_agent_min": int(counts.sum(axis=1).min()),
        "samples_per_agent_max": int(counts.sum(axis=1).max()),
        "best_checkpoint": best_checkpoint,
        "seconds_compile": timing.seconds_compile,
        "seconds_training": timing.seconds_training,
        "seconds_evaluation": timing.seconds_evaluation,
        "steps_per_second": timing.steps / max(timing.seconds_training, 1e-9),
        "device": device_name(),
        "made_with": made_with(),
    }


def device_name() -> str:
    """What the run ran on, as `cpu x 1` or `NVIDIA H100 x 8`."""
    devices = jax.local_devices()
    return f"{devices[0].device_kind} x {len(devices)}"


def results_table(summaries: list[dict[str, Any]]) -> str:
    """A table of summaries for a terminal; accuracies in percent, traffic in megabytes an agent."""
    header = ("method", "local mean", "min", "max", "consensus", "disagreement", "MB sent")
    rows = [
        (
            s["label"],
            *(
                f"{100 * s[k]:.2f}%"
                for k in (
                    "local_accuracy_mean",
                    "local_accuracy_min",
                    "local_accuracy_max",
                    "consensus_accuracy",
                )
            ),
            f"{s['consensus_distance']:.4f}",
            f"{s['bytes_sent_per_agent'] / 1e6:.2f}",
        )
        for s in summaries
    ]
    return text_table(header, rows)


def seeds_table(methods: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A table of means over seeds, with the standard deviation of one seed (n - 1 in its denominator).

    Args:
      methods: For each, the summaries of its seeds.
    """
    header = (
        "mean ± standard deviation",
        "seeds",
        "local mean",
        "min",
        "max",
        "consensus",
        "MB sent",
    )
    shown = {
        "local_accuracy_mean": (100, "%"),
        "local_accuracy_min": (100, "%"),
        "local_accuracy_max": (100, "%"),
        "consensus_accuracy": (100, "%"),
        "bytes_sent_per_agent": (1e-6, ""),
    }

    def cell(values: np.ndarray, unit: str) -> str:
        deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        return f"{values.mean():.2f}{deviation}{unit}"

    rows = [
        (
            own[0]["label"],
            str(len(own)),
            *(
                cell(factor * np.array([s[name] for s in own], float), unit)
                for name, (factor, unit) in shown.items()
            ),
        )
        for own in methods
    ]
    return text_table(header, rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = np.max([[len(cell) for cell in row] for row in (header, *rows)], axis=0)

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        return "  ".join(
            [first.ljust(widths[0])] + [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        )

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])
