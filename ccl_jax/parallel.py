"""The same step over many devices and hosts.

The agents axis is cut into equal blocks, one a device. The step of `ccl_jax.training` runs on each
block under the axis name "agents"; the network collects what crosses devices (`ccl_jax.blocks`). By
default this is `jax.jit` of `jax.shard_map`; `jax.pmap` is there too and gives equal numbers.

On a CPU, several virtual devices are worth having: XLA's convolutions with per-agent kernels are slow,
and a device with a single agent has none.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ccl_jax.blocks import AXIS
from ccl_jax.traffic import Traffic
from ccl_jax.training import StepMetrics

PyTree = Any
Step = Callable[..., tuple[PyTree, StepMetrics]]

FORMS = ("shard_map", "pmap")


def request_cpu_devices(count: int) -> None:
    """Asks for virtual CPU devices; of no effect once JAX has started, or on other platforms."""
    with contextlib.suppress(RuntimeError):  # JAX is running: what is there is what we use.
        jax.config.update("jax_num_cpu_devices", count)


def usable_devices(agents: int) -> int:
    """The largest number of devices at hand that divides the agents."""
    return max(d for d in range(1, jax.device_count() + 1) if agents % d == 0)


class Plan:
    """Where the agents are.

    Args:
      devices: Number of blocks.
      form: "shard_map" or "pmap".

    Raises:
      ValueError: There are fewer devices, or the form is unknown.
    """

    def __init__(self, devices: int = 1, form: str = "shard_map") -> None:
        if form not in FORMS:
            raise ValueError(f"spmd is {form!r}; it must be {' or '.join(FORMS)}")
        if not 1 <= devices <= jax.device_count():
            raise ValueError(
                f"{devices} devices were asked for, and there are {jax.device_count()}; take 1 to "
                f"{jax.device_count()}"
            )
        self.devices = devices
        self.form = form
        self.mesh = jax.make_mesh(
            (devices,),
            (AXIS,),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:devices],
        )

    def wrap(self, step: Step) -> Step:
        """Turns a step of a block into a step of all agents.

        Args:
          step: `step(state, batch) -> (state, metrics)` of `training.make_step`, whose network was
            made for the same number of devices.
        """
        if self.devices == 1:
            return step
        return self._shard_map(step) if self.form == "shard_map" else self._pmap(step)

    def put(self, tree: PyTree) -> PyTree:
        """Spreads stacked leaves over the devices; scalars go to all of them."""
        if self.devices == 1:
            return tree
        return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(self.mesh, _spec(x))), tree)

    def replicate(self, tree: PyTree) -> PyTree:
        """Gives every device a copy."""
        if self.devices == 1:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def fetch(self, tree: PyTree) -> PyTree:
        """NumPy copies of whole arrays, on every host."""
        if jax.process_count() > 1:
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            tree = jax.jit(lambda x: x, out_shardings=everywhere)(tree)
        return jax.device_get(tree)

    def _shard_map(self, step: Step) -> Step:
        def sharded(state, batch):
            specs = jax.tree.map(_spec, (state, batch))
            return jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=(
                    specs[0]._replace(network=PartitionSpec(AXIS)),
                    _metrics(PartitionSpec(AXIS), PartitionSpec(), _BY_AGENT),
                ),
                # Scalars come out the same everywhere, which the checker cannot see.
                check_vma=False,
            )(state, batch)

        return sharded

    def _pmap(self, step: Step) -> Step:
        def cut(x):
            return x.reshape(self.devices, -1, *x.shape[1:]) if x.ndim else x

        def join(x):
            return x.reshape(-1, *x.shape[2:])

        def sharded(state, batch):
            axes = jax.tree.map(lambda x: 0 if x.ndim else None, (state, batch))
            mapped = jax.pmap(
                step,
                axis_name=AXIS,
                in_axes=axes,
                out_axes=(axes[0]._replace(network=0), _metrics(0, None, 1)),
                devices=jax.devices()[: self.devices],
            )
            new, metrics = mapped(*jax.tree.map(cut, (state, batch)))
            memory = jax.tree.map(join, new.network)
            new = jax.tree.map(
                lambda x, old: join(x) if old.ndim else x,
                new._replace(network=()),
                state._replace(network=()),
            )._replace(network=memory)
            agents = {name: join(getattr(metrics, name)) for name in _PER_AGENT}
            traffic = metrics.traffic
            messages, lost = jax.tree.map(
                lambda counts: counts.reshape(counts.shape[0], -1), (traffic.messages, traffic.lost)
            )
            traffic = traffic._replace(messages=messages, lost=lost)
            return new, metrics._replace(**agents, traffic=traffic)

        return sharded


_BY_AGENT = PartitionSpec(None, AXIS)
_PER_AGENT = [name for name in StepMetrics._fields if name not in ("lr", "traffic")]


def _spec(x: Any) -> PartitionSpec:
    return PartitionSpec(AXIS) if np.ndim(x) else PartitionSpec()


def _metrics(per_agent: Any, scalar: Any, messages: Any) -> StepMetrics:
    """A StepMetrics that holds for every field how it is spread."""
    fields = dict.fromkeys(_PER_AGENT, per_agent)
    return StepMetrics(**fields, lr=scalar, traffic=Traffic(scalar, messages, messages))
