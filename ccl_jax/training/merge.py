"""The late merge: after the last step, all models are replaced by their exact average."""

from collections.abc import Callable

import jax

from ccl_jax.devices.parallel import Plan
from ccl_jax.graphs.topology import Topology
from ccl_jax.network import Network, Traffic
from ccl_jax.training.step import TrainState

Merge = Callable[[TrainState], tuple[TrainState, Traffic]]


def make_merge(topology: Topology, plan: Plan) -> Merge:
    """Builds the merge: one all-reduce of parameters and statistics, which no fault reaches.

    Args:
      topology: Who the agents are.
      plan: Where they are.

    Returns:
      `merge(state) -> (state, traffic)`, traffic on the host; the state's buffers are given away.

    Raises:
      ValueError: Parameters are not the models in use (push-sum).
    """
    if topology.stochastic != "row":
        raise ValueError(
            "final_merge averages parameters, and the models of a push-sum method are ratios of two "
            "sums; leave it out, and read consensus_accuracy"
        )
    # Without local steps and faults: at the end everybody is there.
    network = Network(topology, devices=plan.blocks)

    def merge(state: TrainState, _: tuple[()]) -> tuple[TrainState, Traffic]:
        talk = network.round(0)
        params, model_state = talk.average((state.params, state.model_state))
        return state._replace(params=params, model_state=model_state), talk.traffic()

    merge = jax.jit(plan.wrap(merge), donate_argnums=0)

    def merge_and_fetch(state: TrainState) -> tuple[TrainState, Traffic]:
        state, traffic = merge(state, ())
        return state, plan.fetch(traffic)

    return merge_and_fetch
