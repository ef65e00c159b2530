"""Lists every method: what it is, the graph it needs, what a step sends and computes, its citation.

    python -m experiments.methods
    python -m experiments.methods --algorithm=momentum-tracking
    python -m experiments.methods --feature_loss=moon

P is the size of a model, S that of the class sums (C x F + C numbers) and d the number of an agent's
neighbours. What is sent is measured: the method takes a step on a small graph that it accepts, and the
network counts. A gradient is a forward and a backward pass. CCL adds d forward passes and the class
sums, and where a method does not send models to neighbours, one exchange of them. Another table has the
feature losses in the same words, and what an agent keeps for them from step to step.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ccl_jax import algorithms, graphs, losses
from ccl_jax.algorithms.base import Method
from ccl_jax.graphs.topology import Topology
from ccl_jax.losses import NEEDS, FeatureLoss, needs
from ccl_jax.network import Network, Traffic
from ccl_jax.training import Objective
from experiments import cli, settings
from experiments.flag_values import FlagValues

# Small graphs to measure on; a method is measured on the first that it accepts. A ring of 5 has no
# eigenvalue of -1/3, so that D2 runs on it.
_GRAPHS = (("ring", 5), ("chain", 5), ("star", 5))
_CCL = Objective(num_classes=2, lambda_m=1.0, lambda_d=1.0)
_SIZE = 4096  # parameters: counts and push-sum weights that travel along are lost in rounding


class Cost(NamedTuple):
    """What a step of a method costs.

    Attributes:
      topology: The graph that it was measured on.
      exchanges: Exchanges a step.
      model_sizes: What an agent sends a step, in model sizes P, over its number of neighbours d.
      sends_models: Whether neighbours know each other's models by what is sent.
      gradients: Gradients an agent computes in a step (a forward and a backward pass each).
    """

    topology: Topology
    exchanges: int
    model_sizes: float
    sends_models: bool
    gradients: str


def measure(method: Method, topology: Topology) -> Cost:
    """Takes the second step of a method (starts can cost more) and reads what was sent.

    Args:
      method: It.
      topology: A graph that it accepts, such as its `fitting_graph`.
    """
    algorithm, network = algorithms.make(method.name), Network(topology)
    params = {"w": jnp.zeros((topology.agents, _SIZE), jnp.float32)}

    received = []

    def gradient(x, models):
        received.append(models is not None)
        return x, None

    @jax.jit
    def traffic(params) -> Traffic:
        talk = network.round(1)
        state = jax.tree.map(lambda x: jnp.full_like(x, 1), algorithm.init(params, talk))
        algorithms.advance(
            algorithm,
            params,
            state,
            talk,
            jnp.float32(1),
            gradient,
            lambda models: talk.cross(lambda model, data: model, models, params),
        )
        return talk.traffic()

    sent = traffic(params)
    neighbors = topology.mask[0].sum(axis=1)
    sizes = sent.bytes_sent() / neighbors / (4 * _SIZE)
    gradients = "1" if algorithm.combine is None else "1 + d"
    used = int((np.asarray(sent.messages).sum(axis=0) > 0).sum())
    return Cost(topology, used, float(sizes.max()), any(received), gradients)


def what_they_are(entries: Sequence[Method | FeatureLoss], kind: str) -> str:
    """Formats names and what they stand for as lines of text."""
    return _aligned([(kind, "what it is"), *((each.name, each.summary) for each in entries)])


def table(methods: Sequence[Method]) -> str:
    """Formats what methods cost and need as lines of text."""
    rows = [("method", "exchanges", "sends", "gradients", "CCL adds", "graph", "citation")]
    for method in methods:
        rows.append((method.name, *_measured(method), method.graph, method.reference))
    return _aligned(rows)


def _measured(method: Method) -> tuple[str, str, str, str]:
    """Exchanges, what is sent, gradients, and what CCL adds, in words."""
    topology = fitting_graph(method)
    if topology is None:  # A method of a user's own, for graphs of its own.
        return ("not measured",) * 4
    cost = measure(method, topology)
    return str(cost.exchanges), _sends(method, cost), cost.gradients, _ccl_adds(cost)


def table_of_losses(entries: Sequence[FeatureLoss]) -> str:
    """Formats feature losses as lines of text; one that hears other things between exchanges has two."""
    head = ("feature loss", "forward passes", "sends", "keeps", "options", "citation")
    rows = [head]
    for entry in entries:
        options = " ".join(f"{name}={value:g}" for name, value in entry.options.items()) or "none"
        # One that needs a model of the agent's own keeps it between exchanges.
        for steps, name in ((1, entry.name), (2, f"{entry.name}, local steps")):
            wanted = entry.needs_with(steps)
            if steps == 1 or needs.own_models(wanted):
                rows.append((name, *_costs(entry, steps), options, entry.reference))
    return _aligned(rows)


def _costs(entry: FeatureLoss, local_steps: int) -> tuple[str, str, str]:
    """Forward passes without gradient, what is sent beside models, and what is kept."""
    wanted = entry.needs_with(local_steps)
    own = needs.own_models(wanted)
    passes = ["d"] * needs.foreign(wanted) + [str(len(own))] * bool(own)
    sends = [f"{NEEDS[need].sends} d" for need in wanted if NEEDS[need].sends]
    keeps = [NEEDS[need].keeps for need in wanted if NEEDS[need].keeps and need not in own]
    keeps += [f"{len(own)} P"] if own and local_steps > 1 else []
    keeps += ["a memory of its own"] if entry.memory is not None else []
    return " + ".join(passes) or "0", " + ".join(sends) or "nothing", " + ".join(keeps) or "nothing"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text below a head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def details(method: Method) -> str:
    """All that is known about one method."""
    exchanges, sends, gradients, ccl_adds = _measured(method)
    lines = [
        f"{method.name}: {method.summary}",
        f"  published in   {method.reference}",
        f"  graph          {method.graph}",
        f"  a step         exchanges: {exchanges}; sends: {sends}; gradients: {gradients}; "
        f"CCL adds: {ccl_adds}",
        "  hyper-parameters and their defaults",
        *(f"    {name} = {value!r}" for name, value in method.hyperparameters.items()),
        *_settings(settings.table().get(method.name, ())),
    ]
    return "\n".join(lines)


def details_of_loss(entry: FeatureLoss) -> str:
    """All that is known about one feature loss."""
    passes, sends, keeps = _costs(entry, 1)
    lines = [
        f"{entry.name}: {entry.summary}",
        f"  published in   {entry.reference}",
        f"  it hears       {'; '.join(NEEDS[need].text for need in entry.needs) or 'nothing'}",
        f"  a step         forward passes: {passes}; sends: {sends}; keeps: {keeps}",
    ]
    if entry.apart is not None:
        passes, sends, keeps = _costs(entry, 2)
        lines += [
            "  with local steps",
            f"  it hears       {'; '.join(NEEDS[need].text for need in entry.apart)}",
            f"  a step         forward passes: {passes}; sends: {sends}; keeps: {keeps}",
        ]
    lines += ["  options and their defaults"]
    lines += [f"    {name} = {value!r}" for name, value in entry.options.items()]
    return "\n".join([*lines, *_settings(settings.table_of_losses().get(entry.name, ()))])


def _settings(known: Sequence[settings.Setting]) -> list[str]:
    lines = ["  settings (experiments/settings.toml)"] if known else []
    for setting in known:
        values = ", ".join(f"{name}={value}" for name, value in setting.values.items())
        lines += [
            f"    {setting.name} ({setting.status}): {values}",
            f"      {setting.source}",
        ]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables, or one method or loss in detail; returns the exit code."""
    values = FlagValues()
    flags.DEFINE_string("algorithm", None, "show this method in detail", flag_values=values)
    flags.DEFINE_string("feature_loss", None, "show this loss in detail", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
        elif values["algorithm"].value is not None:
            print(details(algorithms.get(values["algorithm"].value)))
        elif values["feature_loss"].value is not None:
            print(details_of_loss(losses.get(values["feature_loss"].value)))
        else:
            methods, entries = list(algorithms.REGISTRY.values()), list(losses.REGISTRY.values())
            print(what_they_are(methods, "method"), end="\n\n")
            print(what_they_are(entries, "feature loss"), end="\n\n")
            print(table(methods))
            print(
                "\nP: size of a model; S: of the class sums; d: number of neighbours; a gradient is a "
                "forward and a backward pass, and with --sam_rho two of them\n"
            )
            print(table_of_losses(entries))

    return cli.guard(body)


def fitting_graph(method: Method) -> Topology | None:
    """The first small graph that a method accepts; None where it accepts none of these."""
    for name, agents in _GRAPHS:
        topology = graphs.make(name, agents, stochastic=method.stochastic)
        try:
            method.check(topology)
        except ValueError:
            continue
        return topology
    return None


def _sends(method: Method, cost: Cost) -> str:
    if not cost.exchanges:
        return "nothing"
    if method.capabilities and method.capabilities.how == "average" and not method.checks:
        return "2 P (N-1)/N"
    return f"{cost.model_sizes:.2f}".rstrip("0").rstrip(".") + " P d"


def _ccl_adds(cost: Cost) -> str:
    """Forward passes without gradient, and what more is sent."""
    models = [] if cost.sends_models else ["P"]
    sent = [*models, *filter(None, (NEEDS[need].sends for need in _CCL.needs))]
    return f"d forward, {sent[0]} d" if len(sent) == 1 else f"d forward, ({' + '.join(sent)}) d"


if __name__ == "__main__":
    sys.exit(main())
