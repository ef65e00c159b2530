"""Distillation of neighbours' logits: what the model-variant loss of CCL is on features.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, with every
neighbour as a teacher on my data. With p the softmax of logits / tau:

    L = sum over j in N_i of  tau^2 * mean over samples of KL( p_ij || p_i )

p_ij is what neighbour j's model says of my batch, a constant. tau^2 keeps the size of the gradient as
tau changes. A sum over neighbours, as L_mv is. It takes the forward passes that cross-features take, and
sends nothing beside the models.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from ccl_jax.losses import base
from ccl_jax.losses.base import Distance, Own


@base.register(
    "logit_distillation",
    needs=("neighbor_logits",),
    summary="towards what my neighbours' models say of my data",
    reference="Hinton et al., arXiv:1503.02531",
)
def logit_distillation_loss(
    own: Own, heard: Mapping[str, Any], distance: Distance, *, temperature: float = 3.0
) -> jax.Array:
    """The loss of one agent; `temperature` is tau > 0."""
    teachers, real = heard["neighbor_logits"]
    chex.assert_rank([own.logits, teachers, real], [2, 3, 1])
    teachers = jax.nn.log_softmax(jax.lax.stop_gradient(teachers) / temperature)
    student = jax.nn.log_softmax(own.logits / temperature)
    apart = lambda teacher: optax.losses.kl_divergence_with_log_targets(student, teacher)
    per_neighbor = jax.vmap(lambda teacher: base.masked_mean(apart(teacher), own.mask))(teachers)
    return temperature**2 * jnp.where(real, per_neighbor, 0.0).sum()
