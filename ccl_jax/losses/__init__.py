"""Losses on features beside the cross-entropy; one idea a file, `base` the contract."""

from ccl_jax.losses import (
    cross_features,
    decorrelation,
    feature_norm,
    logit_distillation,
    moon,
    prototype,
)
from ccl_jax.losses.base import DISTANCES, REGISTRY, FeatureLoss, Own, get, masked_mean, register
from ccl_jax.losses.needs import NEEDS, Batch, ClassSums, class_sums, collect

__all__ = [
    "DISTANCES",
    "NEEDS",
    "REGISTRY",
    "Batch",
    "ClassSums",
    "FeatureLoss",
    "Own",
    "class_sums",
    "collect",
    "cross_features",
    "decorrelation",
    "feature_norm",
    "get",
    "logit_distillation",
    "masked_mean",
    "moon",
    "prototype",
    "register",
]
