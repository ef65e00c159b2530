"""Training: one step of all agents, epochs of steps, and evaluation."""

from ccl_jax.training.step import (
    Objective,
    StepMetrics,
    TrainState,
    clip_per_agent,
    init_state,
    make_features_fn,
    make_step,
    stack,
    with_network_memory,
)

__all__ = [
    "Objective",
    "StepMetrics",
    "TrainState",
    "clip_per_agent",
    "init_state",
    "make_features_fn",
    "make_step",
    "stack",
    "with_network_memory",
]
