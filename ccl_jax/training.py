"""Training: the state of a run, one step of all agents, and an epoch of steps.

The step keeps the authors' order (arXiv:2310.15890): exchange the models and mix; cross-features with
the *pre-mix* models, no gradient; loss and gradient at the mixed point on the own batch; local step.
Everything is stacked over agents, and the whole step is one jitted function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ccl_jax import cross_features, models
from ccl_jax.algorithms.base import Algorithm
from ccl_jax.cross_features import Batch
from ccl_jax.mixing import sum_type
from ccl_jax.names import look_up
from ccl_jax.network import Network
from ccl_jax.traffic import Traffic

PyTree = Any


class TrainState(NamedTuple):
    """Everything that a step reads and changes.

    Attributes:
      step: Scalar int32, steps done.
      params: What agents send at the next step, leaves `[agents, ...]`.
      model_state: Other model collections (batch statistics), leaves `[agents, ...]`; {} without.
      algorithm: State of the algorithm.
      network: Memory of the network (`Round.memory`); () without compression.
      key: The run's random key; `streams.step_key` derives the key of a purpose and step.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    algorithm: PyTree
    network: PyTree
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an agent minimises: cross-entropy + lambda_m L_mv + lambda_d L_dv.

    Attributes:
      num_classes: C.
      lambda_m: Weight of the model-variant loss; 0 leaves it out.
      lambda_d: Weight of the data-variant loss; 0 leaves it out.
      distance: Key of `cross_features.DISTANCES`.
      clip_norm: Largest l2 norm of one agent's gradient; None does not clip.
      lambda_warmup_steps: Steps at the start over which both weights rise linearly from 0.
      measure: Report L_mv and L_dv even where their weight is 0. Costs the forward passes, changes
        no result and is not counted as traffic.

    Raises:
      ValueError: A negative weight, norm or number of steps, or an unknown distance.
    """

    num_classes: int
    lambda_m: float = 0.0
    lambda_d: float = 0.0
    distance: str = "mse"
    clip_norm: float | None = None
    measure: bool = False
    lambda_warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("lambda_m", "lambda_d"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a number >= 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be > 0, or none at all")
        if self.lambda_warmup_steps < 0:
            raise ValueError(f"lambda_warmup_steps is {self.lambda_warmup_steps}; it must be >= 0")
        look_up("distance", self.distance, cross_features.DISTANCES)

    @property
    def uses_cross_features(self) -> bool:
        """Whether training itself needs cross-features."""
        return self.lambda_m > 0 or self.lambda_d > 0

    def rise(self, step: jax.Array) -> jax.Array:
        """The scalar in [0, 1] by which both weights are multiplied after `step` steps."""
        if self.lambda_warmup_steps == 0:
            return jnp.float32(1.0)
        return jnp.minimum(1.0, step.astype(jnp.float32) / self.lambda_warmup_steps)


class StepMetrics(NamedTuple):
    """What a step reports.

    Attributes:
      cross_entropy: `[agents]` mean over the batch, before the update.
      model_variant: `[agents]` L_mv; NaN where it was not computed.
      data_variant: `[agents]` L_dv; NaN where it was not computed.
      samples: `[agents]` int32, samples in the batch without padding.
      correct: `[agents]` int32, of which were classified rightly.
      online: `[agents]` bool; all True in a network without faults.
      gradient_norm: `[agents]` l2 norm of the gradient that the method uses, before clipping.
      lr: Scalar learning rate.
      traffic: What was sent.
    """

    cross_entropy: jax.Array
    model_variant: jax.Array
    data_variant: jax.Array
    samples: jax.Array
    correct: jax.Array
    online: jax.Array
    gradient_norm: jax.Array
    lr: jax.Array
    traffic: Traffic


def init_state(
    model: nn.Module,
    algorithm: Algorithm,
    network: Network,
    image_shape: tuple[int, ...],
    key: jax.Array,
) -> TrainState:
    """The state before the first step: all agents start from the same model.

    Args:
      model: Returns (features, logits).
      algorithm: The method.
      network: What it talks through.
      image_shape: `(H, W, C)`.
      key: `jax.random.key` of the run.
    """

    def build(key):
        init_key, run_key = jax.random.split(key)
        agents = network.topology.agents
        params, model_state = stack(models.init(model, init_key, image_shape), agents)
        algorithm_state = algorithm.init(params, network.whole().round(0))
        return TrainState(jnp.int32(0), params, model_state, algorithm_state, (), run_key)

    # One compilation instead of one for every small operation; on a CPU, random numbers that are
    # drawn once are not worth optimising.
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    return jax.jit(build, compiler_options=options)(key)


def with_network_memory(step: Callable[..., Any], state: TrainState, *batch: Any) -> TrainState:
    """Gives a first state the memory that the network will keep, so that every step is alike.

    Args:
      step: `step(state, *batch) -> (state, metrics)`; it is traced, not run.
      state: A first state, without memory.
      *batch: Its other arguments, or their shapes.
    """
    shapes = jax.eval_shape(lambda *args: step(*args)[0].network, state, *batch)
    return state._replace(network=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def stack(tree: PyTree, agents: int) -> PyTree:
    """Gives every agent its own copy: leaves `[...]` become `[agents, ...]`."""
    return jax.tree.map(lambda x: jnp.tile(x[None], (agents,) + (1,) * jnp.ndim(x)), tree)


def make_step(
    model: nn.Module,
    algorithm: Algorithm,
    network: Network,
    objective: Objective,
    schedule: optax.Schedule,
    *,
    gossip_batch_stats: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Builds one training step of all agents, a pure function to be jitted.

    Args:
      model: Returns (features, logits) for one agent.
      algorithm: The method.
      network: What it talks through.
      objective: The loss.
      schedule: Learning rate by step.
      gossip_batch_stats: Mix the running statistics of batch norm as the models are mixed, and count
        them as traffic; otherwise each agent keeps its own.

    Returns:
      `step(state, batch) -> (state, metrics)`.

    Raises:
      ValueError: Statistics cannot be mixed because the weights do not average (push-sum), or
        because messages are compressed.
    """
    if gossip_batch_stats and network.topology.stochastic != "row":
        raise ValueError(
            "gossip_batch_stats needs weights whose rows sum to 1; with a push-sum method leave it out"
        )
    if gossip_batch_stats and network.compressor is not None:
        raise ValueError(
            "gossip_batch_stats with compression could mix variances to below 0; leave out one of "
            "them"
        )
    features_fn = make_features_fn(model)
    loss_fn = make_loss_fn(model, objective)
    gradients = jax.vmap(jax.value_and_grad(loss_fn, has_aux=True), in_axes=(0, 0, 0, 0, None))

    def plain_gradient(variables, batch):
        plain = make_loss_fn(model, Objective(objective.num_classes))
        return jax.grad(lambda p: plain(p, variables[1], batch, None)[0])(variables[0])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        lr = jnp.asarray(schedule(state.step), sum_type(state.params))
        talk = network.round(state.step, state.network)
        sent = (state.params, state.model_state)

        eval_params, algorithm_state = algorithm.communicate(
            state.params, state.algorithm, talk, lr
        )
        own_stats = talk.mix(state.model_state) if gossip_batch_stats else state.model_state
        received = (algorithm.models(state.params, state.algorithm), state.model_state)
        exchange = functools.partial(
            cross_features.exchange,
            features_fn=features_fn,
            models=received,
            batch=batch,
            num_classes=objective.num_classes,
            message=sent,
        )
        cross = None
        if objective.uses_cross_features:
            cross = exchange(talk, data_variant=objective.lambda_d > 0)
        if objective.measure and (cross is None or cross.sums is None):
            # Nothing more is sent, and what training uses stays as it is.
            measured = exchange(talk.unmetered(), data_variant=True)
            cross = measured if cross is None else measured._replace(neighbors=cross.neighbors)
        (_, (losses, correct, model_state)), grads = gradients(
            eval_params, own_stats, batch, cross, objective.rise(state.step)
        )
        if algorithm.combine is not None:
            foreign = talk.cross(plain_gradient, received, batch, message=sent)
            grads, algorithm_state = algorithm.combine(grads, foreign, algorithm_state, talk)
        norms = jax.vmap(optax.tree.norm)(grads)
        if objective.clip_norm is not None:
            grads = clip_per_agent(grads, norms, objective.clip_norm)
        params, algorithm_state = algorithm.update(grads, eval_params, algorithm_state, talk, lr)

        samples = batch.mask.sum(axis=1, dtype=jnp.int32)
        online = jnp.ones(samples.shape, bool)
        if talk.conditions is not None:
            # Who is offline does not train: what it has stays, and its batch is not seen.
            online = talk.conditions.online
            params = where_agent(online, params, state.params)
            algorithm_state = where_agent(online, algorithm_state, state.algorithm)
            samples, correct = where_agent(online, (samples, correct), (0 * samples, 0 * correct))
        # Nothing seen, nothing learned: an empty batch leaves batch statistics alone.
        model_state = where_agent(samples > 0, model_state, own_stats)
        metrics = StepMetrics(*losses, samples, correct, online, norms, lr, talk.traffic())
        state = TrainState(
            state.step + 1, params, model_state, algorithm_state, talk.memory(), state.key
        )
        return state, metrics

    return step


def where_agent(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """For each agent, `new` where `chosen [agents]`, else `old`; scalars, which all share, are new."""

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), x, y) if x.ndim else x

    return jax.tree.map(choose, new, old)


def make_features_fn(model: nn.Module) -> Callable[[PyTree, jax.Array], jax.Array]:
    """`features_fn((params, model_state), images) -> [batch, F]`, in evaluation mode."""
    return lambda variables, images: models.apply_eval(model, *variables, images)[0]


def make_loss_fn(model: nn.Module, objective: Objective) -> Callable[..., Any]:
    """The loss of one agent.

    Returns:
      `loss_fn(params, model_state, batch, cross, rise) -> (loss, (losses, correct, model_state))`
      with one agent's `Batch` and `CrossFeatures` (or None), and `Objective.rise`; losses are the
      triple cross-entropy, L_mv, L_dv, NaN where not computed.
    """
    distance = cross_features.DISTANCES[objective.distance]

    def loss_fn(params, model_state, batch, cross, rise=1.0):
        (features, logits), model_state = models.apply_train(
            model, params, model_state, batch.images
        )
        per_sample = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        ce = cross_features.masked_mean(per_sample, batch.mask)
        loss, mv, dv = ce, jnp.float32(jnp.nan), jnp.float32(jnp.nan)
        if cross is not None:
            mv = cross_features.model_variant_loss(
                features, cross.neighbors, cross.mask, batch.mask, distance
            )
        if cross is not None and cross.sums is not None:
            dv = cross_features.data_variant_loss(
                features, batch.labels, cross.sums, cross.counts, batch.mask, distance
            )
        # A loss of weight 0 stays out of the sum: 0 * inf would be NaN.
        loss += rise * objective.lambda_m * mv if objective.lambda_m > 0 else 0.0
        loss += rise * objective.lambda_d * dv if objective.lambda_d > 0 else 0.0
        hit = (logits.argmax(axis=-1) == batch.labels) & batch.mask
        return loss, ((ce, mv, dv), hit.sum(dtype=jnp.int32), model_state)

    return loss_fn


def clip_per_agent(grads: PyTree, norms: jax.Array, largest: float) -> PyTree:
    """Scales down each agent's gradient whose l2 norm (`norms [agents]`) is above `largest`."""
    scale = jnp.minimum(1.0, largest / jnp.maximum(norms, 1e-12))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype).reshape(-1, *[1] * (g.ndim - 1)), grads)
