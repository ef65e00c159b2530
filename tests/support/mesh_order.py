"""Devices whose mesh has another order than their numbers, as on TPUs, and what is to be seen there.

`python -m tests.support.mesh_order AGENTS ORDERS [COORDINATOR NUMBER ID]` sees it in a process of its
own, or in several, for each order in a JSON list. An order says which device of all, process by process,
is at each place of the mesh.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, graphs, training
from ccl_jax.devices import hosts, parallel
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

STEPS = 4


@contextlib.contextmanager
def reordered(order: Sequence[int]) -> Iterator[None]:
    """`jax.make_mesh` puts the devices that it is given in this order."""
    make_mesh = jax.make_mesh

    def make(*args, devices, **kwargs):
        return make_mesh(*args, devices=[devices[k] for k in order], **kwargs)

    with mock.patch.object(jax, "make_mesh", make):
        yield


def check(agents: int, order: Sequence[int], form: str, batch_devices: int = 1) -> None:
    """A plan with the mesh in this order: equal numbers, and each agent's own data.

    Raises:
      AssertionError: It is not so.
    """
    with reordered(order):
        plan = parallel.Plan(len(order), form, batch_devices)
    there = [
        device
        for process in range(hosts.count())
        for device in jax.devices()
        if device.process_index == process
    ]
    assert list(plan.mesh.devices.flat) == [there[k] for k in order]
    _own_data(plan, agents)
    _equal_numbers(plan, agents)


def _own_data(plan: parallel.Plan, agents: int) -> None:
    """Every process gives the items of its agents, and each device works on those of its block."""
    items = np.random.default_rng(0).normal(size=(agents, 2)).astype(np.float32)
    mine = plan.agents_here(agents)
    given = plan.put_items(items if mine is None else items[mine])
    state = plan.put({"agent": jnp.arange(agents, dtype=jnp.int32), "step": jnp.int32(0)})

    def step(state, items):
        size = agents // plan.blocks
        here = jax.lax.axis_index("agents") * size + jnp.arange(size, dtype=jnp.int32)
        return state, {"place": here, "agent": state["agent"], "item": items}

    _, seen = jax.jit(plan.wrap(step))(state, given)
    seen = plan.fetch(seen)
    np.testing.assert_array_equal(seen["place"], np.arange(agents))
    np.testing.assert_array_equal(seen["agent"], np.arange(agents))
    np.testing.assert_array_equal(seen["item"], items)


def _equal_numbers(plan: parallel.Plan, agents: int) -> None:
    """CCL's step against the same on one device."""
    algorithm, objective = algorithms.make("qg-dsgdm-n"), Objective(CLASSES, 0.05, 0.05)
    graph, rate = graphs.make("ring", agents), lambda t: jnp.float32(0.02)
    one, many = (Network(graph, devices=devices) for devices in (1, plan.blocks))
    state = training.init_state(TinyModel(), algorithm, one, objective, IMAGE, jax.random.key(0))
    state = state._replace(params=spread(state.params, 0.1))
    make = lambda network: training.make_step(TinyModel(), algorithm, network, objective, rate)
    alone, together = jax.jit(make(one)), jax.jit(plan.wrap(make(many)))
    spread_out = plan.put(state)
    for t in range(STEPS):
        data = batch(agents, 4, seed=t, padded=t % 3)
        state, metrics = alone(state, data)
        spread_out, seen = together(spread_out, plan.put(data))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, plan.fetch(spread_out._replace(key=())), state._replace(key=()))
    jax.tree.map(close, plan.fetch(seen), metrics)


if __name__ == "__main__":
    agents, orders, joining = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    processes = int(joining[1]) if joining else 1
    jax.config.update("jax_num_cpu_devices", len(orders[0]) // processes)
    jax.config.update("jax_disable_most_optimizations", True)
    if joining:
        hosts.join(joining[0], processes, int(joining[2]))
    for order in orders:
        for form, batch_devices in (("shard_map", 1), ("pmap", 1), ("shard_map", 2)):
            check(agents, order, form, batch_devices)
            print(f"{order} {form} {batch_devices}: equal", flush=True)
