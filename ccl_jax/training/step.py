"""Training: the state of a run, and one step of all agents.

The step keeps the authors' order (arXiv:2310.15890): exchange the models and mix; what the losses need,
from the *pre-mix* models, without gradient; loss and gradient at the mixed point on the own batch; local
step. Everything is stacked over agents, and the whole step is one jitted function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from ccl_jax import algorithms, losses, models, trees
from ccl_jax.algorithms import Algorithm, base, contracts
from ccl_jax.losses import Batch, needs
from ccl_jax.network import Memory, Network, Round, Traffic
from ccl_jax.training import sam
from ccl_jax.training.hearing import KnownModels, hear
from ccl_jax.training.objective import Objective

PyTree = Any


class TrainState(NamedTuple):
    """Everything that a step reads and changes.

    Attributes:
      step: Scalar int32, steps done.
      params: What agents send at the next step, leaves `[agents, ...]`.
      model_state: Other model collections (batch statistics), leaves `[agents, ...]`; {} without.
      algorithm: State of the algorithm.
      kept: What feature losses keep for the next exchange; {} without.
      memory: What the network remembers.
      key: The run's random key; `randomness.step_key` derives the key of a purpose and step.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    algorithm: PyTree
    kept: dict[str, PyTree]
    memory: Memory
    key: jax.Array


class StepMetrics(NamedTuple):
    """What a step reports; every leaf leads with the agents axis.

    Attributes:
      cross_entropy: `[agents]` mean over the batch, before the update.
      losses: By name, `[agents]` each, the feature losses that were computed, without their weights.
      samples: `[agents]` int32, samples in the batch without padding.
      correct: `[agents]` int32, of which were classified rightly.
      online: `[agents]` bool; all True in a network without faults.
      taken: `[agents]` bool, alike for all: False in a step that was skipped.
      gradient_norm: `[agents]` l2 norm of the gradient that the method uses, before clipping.
      lr: `[agents]` learning rate.
      traffic: What was sent.
    """

    cross_entropy: jax.Array
    losses: dict[str, jax.Array]
    samples: jax.Array
    correct: jax.Array
    online: jax.Array
    taken: jax.Array
    gradient_norm: jax.Array
    lr: jax.Array
    traffic: Traffic


Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def init_state(
    model: nn.Module,
    algorithm: Algorithm,
    network: Network,
    objective: Objective,
    image_shape: tuple[int, ...],
    key: jax.Array,
    *,
    params: PyTree | None = None,
    gossip_batch_stats: bool = False,
) -> TrainState:
    """The state before the first step: all agents start from the same model.

    Args:
      model: Returns (features, logits).
      algorithm: The method.
      network: What it talks through.
      objective: The loss.
      image_shape: `(H, W, C)`.
      key: `jax.random.key` of the run.
      params: Parameters of one agent from which all start; default: drawn with the key.
      gossip_batch_stats: As for `make_step`.
    """
    agents, whole = network.topology.agents, network.whole()
    objective = objective.on(network)

    def build(key, given):
        init_key, run_key = jax.random.split(key)
        drawn, model_state = models.init(model, init_key, image_shape)
        params, model_state = trees.stack((drawn if given is None else given, model_state), agents)
        algorithm_state = algorithm.init(params, whole.round(0))
        contracts.check_start(algorithm_state, agents)
        one = jax.tree.map(lambda x: x[0], (params, model_state))
        forward = lambda variables, images: models.apply_eval(model, *variables, images)
        features, logits = jax.eval_shape(forward, one, jnp.zeros((1, *image_shape)))
        apart = (params, model_state) if network.local_steps > 1 else None
        kept = needs.start(objective.needs, agents, objective.num_classes, features, apart)
        label, there = (jax.ShapeDtypeStruct((1,), kind) for kind in (jnp.int32, bool))
        if memories := objective.memories(losses.Own(features, logits, label, there)):
            kept["memory"] = trees.stack(memories, agents)
        zero = jnp.int32(0)
        return TrainState(zero, params, model_state, algorithm_state, kept, Memory(), run_key)

    # One compilation instead of one for every small operation; on a CPU, random numbers that are
    # drawn once are not worth optimising.
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    state = jax.jit(build, compiler_options=options)(key, params)
    if not network.remembers:
        return state._replace(memory=Memory.before(Memory()))
    # What the network will remember, from a step that is traced and not run.
    step = make_step(
        model,
        algorithm,
        whole,
        objective,
        optax.constant_schedule(0.0),
        gossip_batch_stats=gossip_batch_stats,
    )
    shape = lambda dtype, *rest: jax.ShapeDtypeStruct((agents, 1, *rest), dtype)
    batch = Batch(shape(jnp.float32, *image_shape), shape(jnp.int32), shape(bool))
    memory = jax.eval_shape(step, state, batch)[0].memory
    return state._replace(memory=Memory.before(memory))


def make_step(
    model: nn.Module,
    algorithm: Algorithm,
    network: Network,
    objective: Objective,
    schedule: optax.Schedule,
    *,
    gossip_batch_stats: bool = False,
) -> Step:
    """Builds one training step of all agents, a pure function to be jitted.

    Args:
      model: Returns (features, logits) for one agent.
      algorithm: The method.
      network: What it talks through.
      objective: The loss.
      schedule: Learning rate by step.
      gossip_batch_stats: Mix the running statistics of batch norm by the graph's weights, whatever the
        gossip rate, and count them as traffic; otherwise each agent keeps its own.

    Returns:
      `step(state, batch) -> (state, metrics)`.

    Raises:
      ValueError: Statistics cannot be mixed because the weights do not average (push-sum).
    """
    if gossip_batch_stats and network.topology.stochastic != "row":
        raise ValueError(
            "gossip_batch_stats needs weights whose rows sum to 1; with a push-sum method leave it out"
        )
    objective = objective.on(network)
    method = algorithm
    if objective.clip_norm is not None:
        method = base.clip(algorithm, objective.clip_norm)
    loss_fn = make_loss_fn(model, objective)
    gradient_fn = _sharpness_aware(jax.grad(loss_fn, has_aux=True), objective)
    gradients = jax.vmap(gradient_fn, in_axes=(0, 0, 0, 0, None))
    plain_gradient = _make_plain_gradient(model, objective)
    forward = lambda variables, images: models.apply_eval(model, *variables, images)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        lr = jnp.asarray(schedule(state.step), trees.sum_type(state.params))
        talk = network.round(state.step, state.memory)
        known = KnownModels(talk, state.params, state.model_state, gossip_batch_stats)

        def gradient(eval_params, sent):
            heard, exchanged = hear(
                objective, talk, known, sent, eval_params, batch, state.kept, forward
            )
            rise = objective.rise(state.step)
            grads, seen = gradients(eval_params, known.own_stats, batch, heard, rise)
            return grads, (seen, exchanged)

        def cross_gradient(sent):
            return talk.cross(plain_gradient, known.message(sent, talk), batch)

        new = algorithms.advance(
            method, state.params, state.algorithm, talk, lr, gradient, cross_gradient
        )
        seen, exchanged = new.aux
        metrics = _report(new, seen, batch, talk, lr)
        # Nothing seen, nothing learned: an empty batch leaves statistics and what is kept of it alone.
        learned = (seen.model_state, seen.kept)
        before = (known.own_stats, {name: state.kept[name] for name in seen.kept})
        model_state, kept = trees.where_agent(metrics.samples > 0, learned, before)
        return TrainState(
            state.step + 1,
            new.params,
            model_state,
            new.state,
            kept | exchanged,
            talk.memory(),
            state.key,
        ), metrics

    return freeze_offline(step) if network.faults.offline else step


def _report(
    new: algorithms.Advance, seen: "Seen", batch: Batch, talk: Round, lr: jax.Array
) -> StepMetrics:
    samples, online = batch.mask.sum(axis=1, dtype=jnp.int32), talk.conditions.online
    return StepMetrics(
        cross_entropy=seen.cross_entropy,
        losses=seen.losses,
        samples=samples,
        correct=seen.correct,
        online=online,
        taken=jnp.ones_like(online),
        gradient_norm=jax.vmap(optax.tree.norm)(new.grads),
        lr=jnp.full(samples.shape, lr),
        traffic=talk.traffic(),
    )


def freeze_offline(step: Step) -> Step:
    """A step in which who is offline does not train: what it has stays, its batch is not seen."""

    def freezing(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        new, metrics = step(state, batch)
        online = metrics.online
        frozen = {
            name: trees.where_agent(online, getattr(new, name), getattr(state, name))
            for name in ("params", "model_state", "algorithm", "kept")
        }
        seen = lambda count: jnp.where(online, count, 0)
        return new._replace(**frozen), metrics._replace(
            samples=seen(metrics.samples), correct=seen(metrics.correct)
        )

    return freezing


def skip_non_finite(step: Callable[..., tuple[TrainState, StepMetrics]]) -> Callable[..., Any]:
    """A step that is not taken where a loss, gradient or new parameter is not finite.

    Everything but the number of steps then stays as it was. What was sent was sent.
    """

    def skipping(state: TrainState, *batch: Any) -> tuple[TrainState, StepMetrics]:
        new, metrics = step(state, *batch)
        numbers = (metrics.cross_entropy, metrics.gradient_norm, new.params)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(numbers)]).all()
        kept = trees.where(finite, new._replace(key=()), state._replace(key=()))
        # The next batch and its randomness go on.
        kept = kept._replace(step=new.step, key=state.key)
        return kept, metrics._replace(taken=metrics.taken & finite)

    return skipping


def make_features_fn(model: nn.Module) -> Callable[[PyTree, jax.Array], jax.Array]:
    """`features_fn((params, model_state), images) -> [batch, F]`, in evaluation mode."""
    return lambda variables, images: models.apply_eval(model, *variables, images)[0]


class Seen(NamedTuple):
    """What one agent's forward pass tells beside its loss.

    Attributes:
      cross_entropy: Mean over the batch, scalar.
      losses: By name, the feature losses without weights, scalars.
      correct: int32, how many samples were classified rightly.
      model_state: New model collections.
      kept: What feature losses keep for the next exchange.
    """

    cross_entropy: jax.Array
    losses: dict[str, jax.Array]
    correct: jax.Array
    model_state: PyTree
    kept: dict[str, PyTree]


def make_loss_fn(model: nn.Module, objective: Objective) -> Callable[..., Any]:
    """The loss of one agent.

    Returns:
      `loss_fn(params, model_state, batch, heard, rise) -> (loss, Seen)` with one agent's `Batch`, what
      it has heard (`needs.collect`), and `Objective.rise`.
    """
    distance = losses.DISTANCES[objective.distance]

    def loss_fn(params, model_state, batch, heard, rise=1.0):
        (features, logits), model_state = models.apply_train(
            model, params, model_state, batch.images
        )
        per_sample = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        cross_entropy = losses.masked_mean(per_sample, batch.mask)
        own = losses.Own(features, logits, batch.labels, batch.mask)
        parts, memories = {}, {}
        for name in objective.reported:
            entry = losses.get(name)
            needed = {need: heard[need] for need in objective.needs_of(name)}
            if entry.memory is not None:
                needed["memory"] = heard["memory"][name]
            options = objective.loss_options.get(name, {})
            parts[name], memory = entry.value_and_memory(own, needed, distance, **options)
            if entry.memory is not None:
                memories[name] = memory
        # A loss of weight 0 stays out of the sum: 0 * inf would be NaN.
        total = cross_entropy
        for name, weight in objective.weights.items():
            total += rise * weight * parts[name]
        hit = (logits.argmax(axis=-1).astype(batch.labels.dtype) == batch.labels) & batch.mask
        kept = needs.keep(objective.needs, own, objective.num_classes)
        if memories:
            kept["memory"] = memories
        correct = hit.sum(dtype=jnp.int32)
        return total, Seen(cross_entropy, parts, correct, model_state, kept)

    return loss_fn


def _make_plain_gradient(model: nn.Module, objective: Objective) -> Callable[..., PyTree]:
    """`gradient((params, model_state), batch)` of the cross-entropy of one model on one batch."""
    loss_fn = make_loss_fn(model, Objective(objective.num_classes))
    gradient_fn = _sharpness_aware(jax.grad(loss_fn, has_aux=True), objective)
    return lambda variables, batch: gradient_fn(*variables, batch, {})[0]


def _sharpness_aware(gradient: sam.Gradient, objective: Objective) -> sam.Gradient:
    return sam.sharpness_aware(gradient, objective.sam_rho, objective.sam_adaptive)
