"""ccl_jax: decentralized deep learning on heterogeneous data, in JAX.

    import ccl_jax

    config = ccl_jax.Config(dataset="digits", model="digits-cnn", agents=8, lambda_m=0.1, lambda_d=0.1)
    summary = ccl_jax.train(config.replace(workdir="runs/mine"))
    run = ccl_jax.load_run("runs/mine")
    probabilities = run.predict(images)

The rooms, from the bottom up: `graphs`, `network`, `losses`, `algorithms`, `models`, `data`, `devices`,
`training`, `runs`.
"""

from ccl_jax import algorithms, data, devices, graphs, losses, models, network, runs, training
from ccl_jax.runs import Config, LoadedRun, Run, execute, load_run, prepare, train, train_seeds

__all__ = [
    "Config",
    "LoadedRun",
    "Run",
    "algorithms",
    "data",
    "devices",
    "execute",
    "graphs",
    "load_run",
    "losses",
    "models",
    "network",
    "prepare",
    "runs",
    "train",
    "train_seeds",
    "training",
]

__version__ = "0.2.0"
