"""Blocks: which rows a device holds and receives, by hand, and that they are what it then has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ccl_jax import graphs
from ccl_jax.graphs import topology
from ccl_jax.network import blocks


def test_one_device_holds_everybody_and_nothing_moves():
    schedule = blocks.make_schedule(graphs.make("ring", 4), 1)
    assert schedule.rows_moved == 0
    np.testing.assert_array_equal(schedule.members, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(schedule.place, [[0, 1, 2, 3]])
    block = blocks.Block(schedule)
    np.testing.assert_array_equal(block.ids, [0, 1, 2, 3])
    x = jnp.array([1.0, 2.0, 3.0, 6.0])
    assert block.collect(x) is x
    assert block.mean(x) == 3


def test_a_ring_passes_the_ends_of_its_blocks():
    schedule = blocks.make_schedule(graphs.make("ring", 8), 4)
    assert schedule.rows_moved == 2  # an all-gather moves 6
    # The last agent of the block before, then the first of the block after.
    members = [[0, 1, 7, 2], [2, 3, 1, 4], [4, 5, 3, 6], [6, 7, 5, 0]]
    np.testing.assert_array_equal(schedule.members, members)
    assert schedule.valid.all()
    assert [(shift.distance, shift.rows.tolist()) for shift in schedule.shifts] == [
        (1, [[1]] * 4),
        (3, [[0]] * 4),
    ]
    np.testing.assert_array_equal(schedule.place[0, [0, 1, 7, 2]], [0, 1, 2, 3])


def test_rows_that_only_some_devices_need_are_padding_elsewhere():
    schedule = blocks.make_schedule(graphs.make("chain", 6), 3)
    # Nobody is before 0 and nobody after 5.
    members = [[0, 1, -1, 2], [2, 3, 1, 4], [4, 5, 3, -1]]
    np.testing.assert_array_equal(np.where(schedule.valid, schedule.members, -1), members)


def test_listeners_are_needed_too():
    # Agent i hears i + 1 only; replies and data also come from who hears it.
    one_way = topology.from_matrix("one way", (np.eye(8) + np.roll(np.eye(8), 1, axis=1)) / 2)
    schedule = blocks.make_schedule(one_way, 4)
    assert set(schedule.members[1].tolist()) == {1, 2, 3, 4}


def test_a_dense_graph_is_gathered():
    schedule = blocks.make_schedule(graphs.make("full", 4), 2)
    assert schedule.shifts is None and schedule.rows_moved == 2
    np.testing.assert_array_equal(schedule.members, [[0, 1, 2, 3]] * 2)


def test_a_graph_over_time_has_the_rows_of_all_its_rounds():
    eye = np.eye(8)
    near, far = (np.roll(eye, shift, axis=1) for shift in (1, 4))
    graph = topology.from_matrix("far and near", np.stack([(eye + near) / 2, (eye + far) / 2]))
    schedule = blocks.make_schedule(graph, 4)
    assert set(schedule.members[0].tolist()) == {0, 1, 2, 4, 5, 7}


@pytest.mark.parametrize("devices", [0, 2, 3, 4])
def test_agents_that_cannot_be_divided_are_refused(devices):
    with pytest.raises(ValueError, match=f"5 agents cannot be divided evenly among {devices} dev"):
        blocks.make_schedule(graphs.make("ring", 5), devices)


@pytest.mark.parametrize(
    "graph, agents, devices", [("ring", 8, 4), ("chain", 6, 3), ("full", 4, 2), ("torus", 16, 8)]
)
def test_devices_have_the_rows_that_the_schedule_says(graph, agents, devices):
    schedule = blocks.make_schedule(graphs.make(graph, agents), devices)
    x = jnp.arange(10.0 * agents).reshape(agents, 10)

    def collect(x):
        block = blocks.Block(schedule)
        rows = block.collect(x)
        here = (block.ids, rows, block.members, block.valid, rows[block.place[block.ids]])
        return *here, block.mean(x)[None]

    mesh = Mesh(np.array(jax.devices()[:devices]), (blocks.AXIS,))
    split = PartitionSpec(blocks.AXIS)
    sharded = jax.shard_map(collect, mesh=mesh, in_specs=split, out_specs=split)
    ids, rows, members, valid, own, mean = jax.jit(sharded)(x)
    np.testing.assert_array_equal(ids, np.arange(agents))
    np.testing.assert_array_equal(
        np.asarray(rows)[valid], np.asarray(x)[np.asarray(members)[valid]]
    )
    np.testing.assert_array_equal(own, x)
    np.testing.assert_allclose(mean, np.tile(x.mean(axis=0), (devices, 1)), rtol=1e-6)
