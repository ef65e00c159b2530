"""Meshes in the order that JAX gives TPU chips: equal numbers, and each agent's own data.

`jax.make_mesh` lays a mesh along the wires between chips. The orders here are what it makes of the
chips that libtpu describes; where libtpu is installed, a test sees that they are.
"""

import importlib.util
import json
import subprocess

import pytest

from ccl_jax.devices import parallel
from experiments.benchmark import compiled
from tests.devices.test_hosts import free_port, start
from tests.support import mesh_order

# The numbers of the chips along the mesh.
ORDERS = {
    "v5e:2x2": [0, 1, 3, 2],
    "v5e:2x4": [0, 1, 2, 3, 7, 6, 5, 4],
    "v5e:4x4": [0, 1, 2, 3, 7, 6, 5, 9, 10, 11, 15, 14, 13, 12, 8, 4],
    "v5p:2x2x2": [0, 4, 2, 6, 1, 5, 3, 7],
}


@pytest.mark.parametrize("form", parallel.FORMS)
@pytest.mark.parametrize("chips", ["v5e:2x2", "v5e:2x4"])
def test_both_forms_on_four_and_eight_devices(chips, form):
    mesh_order.check(8, ORDERS[chips], form)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("chips", ORDERS)
def test_the_orders_are_those_of_libtpu(chips):
    devices = compiled.chips(f"tpu:{chips}")
    mesh = parallel.Plan(len(devices), among=devices).mesh
    assert [device.id for device in mesh.devices.flat] == ORDERS[chips]


def see(process: subprocess.Popen, orders: list[list[int]]) -> None:
    """A process of `mesh_order` has seen for all orders that all is well."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    kinds = ("shard_map 1", "pmap 1", "shard_map 2")
    said = [line for line in out.splitlines() if line.endswith("equal")]
    assert said == [f"{order} {kind}: equal" for order in orders for kind in kinds]


@pytest.mark.slow
def test_both_forms_on_sixteen_devices():
    orders = [ORDERS["v5e:4x4"]]
    see(start("-m", "tests.support.mesh_order", "16", json.dumps(orders)), orders)


@pytest.mark.slow
def test_two_processes_whose_chips_are_interleaved():
    """In turns, as on a v5p 2x2x2, and by a snake that comes back, as on larger slices."""
    orders = [ORDERS["v5p:2x2x2"], [0, 1, 4, 5, 6, 7, 2, 3]]
    command = ("-m", "tests.support.mesh_order", "8", json.dumps(orders))
    joining = (f"localhost:{free_port()}", "2")
    processes = [start(*command, *joining, str(k)) for k in range(2)]
    for process in processes:
        see(process, orders)
