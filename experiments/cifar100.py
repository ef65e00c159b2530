"""Trains decentralized agents on CIFAR-100.

python -m experiments.cifar100 --data_dir=DIR --topology=ring --alpha=0.1 --lambda_m=0.1 --lambda_d=0.1

DIR holds cifar-100-binary.tar.gz or its files, or the set as `experiments.prepare` makes it.
"""

import sys

from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from experiments import cli

# As published (arXiv:2310.15890, authors' code), as is the learning rate of 0.1 for 200 epochs.
DEFAULTS = Config(dataset="cifar100", model="resnet20", augment="flip-crop")

if __name__ == "__main__":
    sys.exit(cli.run_main(runner.main, DEFAULTS, __doc__))
