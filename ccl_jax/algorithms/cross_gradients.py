"""What the cross-gradient methods (NGC, CGA) share: lifting a base method, and error feedback.

Agent i has its own gradient o_i, the gradients M_ij of its neighbours' models x_j on its own data
(model-variant; computed at i), and, after sending those back, the gradients G_ij of its own model on
its neighbours' data (data-variant). A method merges them into one gradient for a base method.

With compression every gradient is sent as s = sign(z) mean|z| a tensor, z = gradient + e, and the
error e <- z - s stays with the agent that computed it: one memory for the own gradient and one for
each neighbour (Karimireddy et al., arXiv:1901.09847).
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from ccl_jax import trees
from ccl_jax.algorithms import base
from ccl_jax.network import compression

# Why the network leaves these methods' messages alone.
UNCOMPRESSED = "sends gradients, too, which the network does not compress; take its comp- form"
NOISELESS = "compresses its own replies, after which noise would come"


class CrossGradientState(NamedTuple):
    """State of a method that merges own and cross-gradients.

    Attributes:
      inner: State of the base method.
      own_error: e of the own gradient, like params; () without compression.
      cross_error: e of the cross-gradients, leaves `[agents, degree, ...]`; () without.
    """

    inner: base.PyTree
    own_error: base.PyTree = ()
    cross_error: base.PyTree = ()


def lift(
    inner: base.Algorithm,
    merge: Callable[[base.PyTree, base.PyTree, base.Round], base.PyTree],
    compress: bool,
) -> base.Algorithm:
    """A method whose gradient is made of own and cross-gradients.

    Args:
      inner: The base method that takes the merged gradient.
      merge: `merge(own, cross, talk) -> gradient`.
      compress: Sign compression with error feedback of all gradients.
    """

    def init(params, talk):
        state = CrossGradientState(inner.init(params, talk))
        if not compress:
            return state
        return state._replace(
            own_error=optax.tree.zeros_like(params),
            cross_error=trees.per_edge(params, talk.mask.shape[1]),
        )

    def communicate(params, state, talk, lr):
        eval_params, inner_state, message = inner.communicate(params, state.inner, talk, lr)
        return eval_params, state._replace(inner=inner_state), message

    def combine(grads, cross, state, talk):
        if compress:
            grads, own_error = compression.feedback(compression.SIGN, grads, state.own_error, 1)
            cross, cross_error = compression.feedback(compression.SIGN, cross, state.cross_error, 2)
            # Where agents work alone no cross-gradient is sent, and nothing of it is forgotten.
            cross_error = trees.where(talk.active, cross_error, state.cross_error)
            state = state._replace(own_error=own_error, cross_error=cross_error)
        return merge(grads, cross, talk), state

    def update(grads, eval_params, state, talk, lr):
        params, inner_state = inner.update(grads, eval_params, state.inner, talk, lr)
        return params, state._replace(inner=inner_state)

    models = lambda params, state: inner.models(params, state.inner)
    return base.Algorithm(init, communicate, update, combine, models)
