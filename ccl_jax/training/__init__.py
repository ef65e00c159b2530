"""Training: one step of all agents, epochs of steps, and evaluation."""

from ccl_jax.training.objective import Objective
from ccl_jax.training.step import (
    StepMetrics,
    TrainState,
    freeze_offline,
    init_state,
    make_features_fn,
    make_loss_fn,
    make_step,
    skip_non_finite,
)

__all__ = [
    "Objective",
    "StepMetrics",
    "TrainState",
    "freeze_offline",
    "init_state",
    "make_features_fn",
    "make_loss_fn",
    "make_step",
    "skip_non_finite",
]
