"""The same step over many devices and hosts.

The agents axis is cut into equal blocks, one for each device. The step of `ccl_jax.training` runs on
each block under the axis name "agents"; the network collects what crosses devices
(`ccl_jax.network.blocks`). By default this is `jax.jit` of `jax.shard_map`; `jax.pmap` is there too and
gives equal numbers. Where agents are few, several devices can share the batches of a block: a second
axis, which the compiler sees to. The devices may be those of several processes
(`ccl_jax.devices.hosts`). There `jax.pmap` cannot be called inside of a jitted step, and both forms are
jit of shard_map.

On a CPU, several virtual devices are worth having: agents run side by side, and the convolutions of each
are plain ones (docs/benchmark.md).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ccl_jax.devices import hosts
from ccl_jax.network.blocks import AXIS

PyTree = Any
Step = Callable[..., tuple[PyTree, PyTree]]

FORMS = ("shard_map", "pmap")

BATCH = "batch"


def request_cpu_devices(count: int) -> None:
    """Asks for virtual CPU devices of this process; of no effect once JAX runs, or elsewhere."""
    with contextlib.suppress(RuntimeError):  # JAX is running: what is there is what we use.
        jax.config.update("jax_num_cpu_devices", count)


def usable_devices(agents: int, batch_devices: int = 1) -> int:
    """The largest number of devices at hand, as many of each process, over which agents can be spread.

    Args:
      agents: Number of agents.
      batch_devices: Devices that share each agent's batch.

    Raises:
      ValueError: There is none.
    """
    here, processes = _devices_a_process(), hosts.count()
    possible = [
        d
        for d in range(processes, here * processes + 1, processes)
        if d % batch_devices == 0 and agents % (d // batch_devices) == 0
    ]
    if not possible:
        raise ValueError(
            f"{agents} agents with batch_devices {batch_devices} cannot be spread evenly over "
            f"{processes} processes of {here} devices; take a number that is batch_devices x a divisor "
            f"of {agents}, a multiple of {processes} and at most {here * processes}"
        )
    return max(possible)


class Plan:
    """Where the agents are, and their batches.

    Args:
      devices: Number of devices, the same of each process: blocks of agents x batch_devices.
      form: "shard_map" or "pmap".
      batch_devices: Devices that share the batches of each block of agents. The compiler divides the
        batch axis among them, and sums over it stay sums over all of it.
      among: The devices to choose from. They need not be at hand for a program that is only compiled
        for them (`jax.experimental.topologies`). Default: those of all processes.

    Attributes:
      blocks: Number of blocks of agents.
      mesh: The devices, in an order of its own, which suits how they are wired.
      processes: Number of processes that have them.

    Raises:
      ValueError: The devices are not there or cannot be divided so, or the form is unknown or cannot
        do this.
    """

    def __init__(
        self,
        devices: int = 1,
        form: str = "shard_map",
        batch_devices: int = 1,
        *,
        among: Sequence[jax.Device] | None = None,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"spmd is {form!r}; it must be {' or '.join(FORMS)}")
        processes, here = (
            (hosts.count(), _devices_a_process()) if among is None else (1, len(among))
        )
        if form == "pmap" and batch_devices > 1:
            raise ValueError(
                f"spmd is 'pmap' and batch_devices is {batch_devices}; with pmap it must be 1: leave "
                "it out, or take shard_map"
            )
        if not 1 <= devices <= processes * here:
            raise ValueError(
                f"{devices} devices were asked for, and there are {processes * here}; take 1 to "
                f"{processes * here}"
            )
        for name, part in (("batch_devices", batch_devices), ("num_processes", processes)):
            if devices % part:
                raise ValueError(
                    f"{devices} devices cannot be divided by {name} {part}; take a multiple of it"
                )
        self.devices = devices
        self.form = form
        self.batch_devices = batch_devices
        self.blocks = devices // batch_devices
        self.mesh = jax.make_mesh(
            (self.blocks, batch_devices),
            (AXIS, BATCH),
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
            devices=_of_each_process(devices // processes) if among is None else among[:devices],
        )
        self.processes = len({device.process_index for device in self.mesh.devices.flat})

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def wrap(self, step: Step) -> Step:
        """Turns a step of a block into a step of all agents.

        Args:
          step: `step(state, batch) -> (state, metrics)` of a block. Leaves of the state are scalars or
            lead with the agents axis, those of the metrics all do.
        """
        if self.devices == 1:
            return step
        # Several processes cannot call jax.pmap inside of a jitted step. It is made of shard_map, too.
        if self.form == "shard_map" or self.processes > 1:
            return self._shard_map(step)
        return self._pmap(step)

    def put(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Spreads stacked leaves over the devices; what has no agents axis goes to all of them.

        With several processes each gives the whole tree, and keeps its part.

        Args:
          tree: Arrays.
          axis: Where their agents axis is.
        """
        if self.devices == 1:
            return tree
        return jax.tree.map(lambda x: self._place(x, _spec(x, axis)), tree)

    def expected(self, tree: PyTree) -> PyTree:
        """Shapes, dtypes and places of what `put` gives a program: to compile it without the values."""

        def describe(x: Any) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self.mesh, _spec(x))
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(describe, tree)

    def replicate(self, tree: PyTree) -> PyTree:
        """Gives every device a copy."""
        if self.devices == 1:
            return tree
        return jax.tree.map(lambda x: self._place(x, PartitionSpec()), tree)

    def on_mesh(self, tree: PyTree) -> PyTree:
        """Stacked leaves where the mesh has them, also if it is of one device; copies what must move."""
        if hosts.count() > 1:
            return tree  # Nothing else can have been put there.
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def each(self, values: np.ndarray) -> jax.Array:
        """Gives every device an equal part of `[devices n]` values, blocks of agents first."""
        return self._place(jnp.asarray(values), PartitionSpec((AXIS, BATCH)))

    def fetch(self, tree: PyTree) -> PyTree:
        """NumPy copies of whole arrays, on every host."""
        return jax.device_get(hosts.whole(tree))

    def begin_fetch(self, tree: PyTree) -> PyTree:
        """Begins to copy whole arrays to the host and does not wait; `jax.device_get` then does."""
        tree = hosts.whole(tree)
        for leaf in jax.tree.leaves(tree):
            leaf.copy_to_host_async()
        return tree

    def agents_here(self, agents: int) -> np.ndarray | None:
        """The agents whose data this process needs, in increasing order; None: it is the only one."""
        if hosts.count() == 1:
            return None
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        blocks = sharding.addressable_devices_indices_map((agents,)).values()
        return np.unique(np.concatenate([np.arange(agents)[block] for block in blocks]))

    def items(self, shapes: PyTree, axis: int = 0) -> PyTree:
        """What a program that is compiled has to expect of `put_items`.

        Args:
          shapes: `jax.ShapeDtypeStruct` leaves, with all agents.
          axis: The agents axis of all leaves.
        """
        if hosts.count() == 1:
            return shapes
        spread = self._over_agents(axis)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), shapes
        )

    def put_items(self, items: PyTree, axis: int = 0) -> PyTree:
        """Hands over items of a feed, of which every process has those of its own agents.

        Args:
          items: NumPy leaves.
          axis: The agents axis of all leaves.
        """
        if hosts.count() == 1:
            return items
        spread = self._over_agents(axis)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(spread, x), items)

    def _over_agents(self, axis: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def _place(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(self.mesh, spec)
        if hosts.count() == 1:
            return jax.device_put(x, sharding)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = self._place(jax.random.key_data(x), spec)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        values = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: values[index])

    def _shard_map(self, step: Step) -> Step:
        shared = self.batch_devices > 1

        def sharded(state, batch):
            specs = jax.tree.map(_spec, (state, batch))
            if shared:
                batch = self._constrain(batch, PartitionSpec(AXIS, BATCH))
            new, metrics = jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=(specs[0], PartitionSpec(AXIS)),
                axis_names={AXIS} if shared else set(self.mesh.axis_names),
                # Scalars come out the same everywhere, which the checker cannot see.
                check_vma=False,
            )(state, batch)
            if shared:
                # The next step expects the state where this one found it.
                new = jax.tree.map(lambda x: self._constrain(x, _spec(x)), new)
            return new, metrics

        return sharded

    def _constrain(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

    def _pmap(self, step: Step) -> Step:
        def cut(x):
            agents = x.shape[0] // self.devices if x.ndim else 0
            return x.reshape(self.devices, agents, *x.shape[1:]) if x.ndim else x

        def join(x):
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        def sharded(state, batch):
            axes = jax.tree.map(lambda x: 0 if x.ndim else None, (state, batch))
            mapped = jax.pmap(
                step,
                axis_name=AXIS,
                in_axes=axes,
                out_axes=(axes[0], 0),
                # In the mesh's own order, which is not that of the numbers on every machine.
                devices=self.mesh.devices.ravel().tolist(),
            )
            new, metrics = mapped(*jax.tree.map(cut, (state, batch)))
            new = jax.tree.map(lambda x, old: join(x) if old.ndim else x, new, state)
            return new, jax.tree.map(join, metrics)

        return sharded


def _devices_a_process() -> int:
    """The devices that every process has."""
    owners = [device.process_index for device in jax.devices()]
    return min(owners.count(process) for process in set(owners))


def _of_each_process(count: int) -> list[jax.Device]:
    """The first `count` devices of every process, process by process."""
    return [
        device
        for process in range(hosts.count())
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]


def _spec(x: Any, axis: int = 0) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS) if np.ndim(x) > axis else PartitionSpec()
