"""Lists every method: the graph it needs, what it sends and computes in a step, and its citation.

    python -m experiments.methods
    python -m experiments.methods --algorithm=momentum-tracking

P is the size of a model, S that of the class sums (C x F + C numbers) and d the number of an agent's
neighbours. What is sent is measured: the method takes a step on a small graph that it accepts, and the
network counts. A gradient is a forward and a backward pass. CCL adds d forward passes and the class
sums, and where a method does not send models to neighbours, one exchange of them.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms.base import Method
from ccl_jax.graphs.topology import Topology
from ccl_jax.losses import NEEDS
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


def measure(method: Method) -> Cost:
    """Takes the second step of a method (starts can cost more) and reads what was sent."""
    topology = _fitting_graph(method)
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


def table(methods: Sequence[Method]) -> str:
    """Formats methods as lines of text."""
    rows = [("method", "exchanges", "sends", "gradients", "CCL adds", "graph", "citation")]
    for method in methods:
        cost = measure(method)
        shown = (method.name, str(cost.exchanges), _sends(method, cost), cost.gradients)
        rows.append((*shown, _ccl_adds(cost), method.graph, method.reference))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def details(method: Method) -> str:
    """All that is known about one method."""
    cost = measure(method)
    lines = [
        f"{method.name}: {method.summary}",
        f"  published in   {method.reference}",
        f"  graph          {method.graph}",
        f"  a step         exchanges: {cost.exchanges}; sends: {_sends(method, cost)}; "
        f"gradients: {cost.gradients}; CCL adds: {_ccl_adds(cost)}",
        "  hyper-parameters and their defaults",
        *(f"    {name} = {value!r}" for name, value in method.hyperparameters.items()),
        "  settings (experiments/settings.toml)",
    ]
    for setting in settings.table().get(method.name, ()):
        values = ", ".join(f"{name}={value}" for name, value in setting.values.items())
        lines += [
            f"    {setting.name} ({setting.status}): {values}",
            f"      {setting.source}",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, or one method with --algorithm; returns the exit code."""
    values = FlagValues()
    flags.DEFINE_string("algorithm", None, "show this method in detail", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
        elif values["algorithm"].value is not None:
            print(details(algorithms.get(values["algorithm"].value)))
        else:
            print(table(list(algorithms.REGISTRY.values())))
            print(
                "\nP: size of a model; S: of the class sums; d: number of neighbours; a gradient is a "
                "forward and a backward pass"
            )

    return cli.guard(body)


def _fitting_graph(method: Method) -> Topology:
    for name, agents in _GRAPHS:
        topology = graphs.make(name, agents, stochastic=method.stochastic)
        try:
            method.check(topology)
        except ValueError:
            continue
        return topology
    raise ValueError(f"{method.name} accepts none of the graphs that methods are measured on")


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
