"""The same training step as a plain PyTorch loop over agents, to compare speed with.

One process holds all agents. A step is QG-DSGDm-N (displacement form) with the cross-feature
contrastive loss, as in `ccl_jax`: mix; cross-features of the models before mixing, without gradient;
loss and gradient at the mixed point; local step. Models are functions of a dictionary of parameters
by the names of the published code (`ccl_jax.models.convert`). What is cheaper in a loop is done so:
a model visits its listeners' batches at once, gossip is one matrix product over flat parameters;
EvoNorm's x * clamp(x / 6 + 1/2, 0, 1) is PyTorch's fused hardswish, and its variance is spelled out,
as `torch.var` is slower on a CPU.

Importing this module needs PyTorch: `pip install 'ccl_jax[torch]'`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccl_jax.models.convert import from_torch, to_torch
from ccl_jax.models.mobilenet import GROUPS
from experiments.benchmark.workload import CLASSES, LEARNING_RATE, METHODS, Workload

Params = Mapping[str, Tensor]
Model = Callable[[Params, Tensor], tuple[Tensor, Tensor]]


def evonorm(x: Tensor, p: Params, name: str) -> Tensor:
    """EvoNorm-S0, eight groups: [batch, C, H, W] -> the same."""
    batch, channels = x.shape[:2]
    groups = math.gcd(8, channels)
    grouped = x.reshape(batch, groups, -1)
    variance = (grouped - grouped.mean(dim=2, keepdim=True)).square().mean(dim=2)
    std = (variance + 1e-5).sqrt().repeat_interleave(channels // groups, dim=1)
    return F.hardswish(x) * (p[f"{name}.weight"] / std[:, :, None, None]) + p[f"{name}.bias"]


def lenet5(p: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """LeNet-5: [batch, C, H, W] -> features, logits."""
    for name, padding in (("conv1", 2), ("conv2", 0)):
        x = F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=padding)
        x = F.max_pool2d(F.relu(x), 2)
    x = x.flatten(1)
    for name in ("fc1", "fc2"):
        x = F.relu(F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]))
    return x, F.linear(x, p["fc3.weight"], p["fc3.bias"])


def cifar_resnet(depth: int) -> Model:
    """The CIFAR ResNet of depth 6n + 2 with EvoNorm."""

    def model(p: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        x = evonorm(F.conv2d(x, p["conv1.weight"], padding=1), p, "bn1")
        for stage in (1, 2, 3):
            for i in range((depth - 2) // 6):
                name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
                y = F.conv2d(x, p[f"{name}.conv1.weight"], stride=stride, padding=1)
                y = F.conv2d(evonorm(y, p, f"{name}.bn1"), p[f"{name}.conv2.weight"], padding=1)
                y = evonorm(y, p, f"{name}.bn2")
                if stride > 1:
                    x = F.conv2d(x, p[f"{name}.downsample.0.weight"], stride=stride)
                    x = evonorm(x, p, f"{name}.downsample.1")
                x = x + y
        x = x.mean(dim=(2, 3))
        return x, F.linear(x, p["fc.weight"], p["fc.bias"])

    return model


def mobilenetv2(p: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """MobileNet-V2 for 32x32 images with EvoNorm."""
    x = evonorm(F.conv2d(x, p["conv1.weight"], padding=1), p, "bn1")
    strides = [stride if i == 0 else 1 for _, _, number, stride in GROUPS for i in range(number)]
    for i, stride in enumerate(strides):
        name = f"layers.{i}"
        y = evonorm(F.conv2d(x, p[f"{name}.conv1.weight"]), p, f"{name}.bn1")
        kernel = p[f"{name}.conv2.weight"]
        y = F.conv2d(y, kernel, stride=stride, padding=1, groups=len(kernel))
        y = F.conv2d(evonorm(y, p, f"{name}.bn2"), p[f"{name}.conv3.weight"])
        y = evonorm(y, p, f"{name}.bn3")
        if f"{name}.shortcut.0.weight" in p:
            x = F.conv2d(x, p[f"{name}.shortcut.0.weight"])
            x = evonorm(x, p, f"{name}.shortcut.1")
        x = y if stride > 1 else x + y
    x = evonorm(F.conv2d(x, p["conv2.weight"]), p, "bn2").mean(dim=(2, 3))
    return x, F.linear(x, p["linear.weight"], p["linear.bias"])


MODELS: Mapping[str, Model] = {
    "lenet5": lenet5,
    "resnet8": cifar_resnet(8),
    "resnet20": cifar_resnet(20),
    "mobilenetv2": mobilenetv2,
}


class Loop:
    """All agents, their parameters and momenta, and a step of them.

    Args:
      model: One of MODELS' values.
      start: The agents' parameters by PyTorch's names, leaves [agents, ...].
      weights: [agents, agents] mixing matrix.
      neighbors: For each agent, whom it hears.
      num_classes: C.
      lambda_m: Weight of the model-variant loss.
      lambda_d: Weight of the data-variant loss; without either, cross-features are left out.
      lr: Learning rate, constant.
      momentum: Of Nesterov's form.
      weight_decay: Added to the gradient.
    """

    def __init__(
        self,
        model: Model,
        start: Mapping[str, np.ndarray],
        weights: np.ndarray,
        neighbors: Sequence[Sequence[int]],
        *,
        num_classes: int,
        lambda_m: float,
        lambda_d: float,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
    ) -> None:
        agents = len(neighbors)
        self._model = model
        self._names = list(start)
        self._shapes = [start[name].shape[1:] for name in start]
        flat = [np.reshape(start[name], (agents, -1)) for name in start]
        self._sizes = [x.shape[1] for x in flat]
        self._params = torch.from_numpy(np.concatenate(flat, axis=1))
        self._momenta = torch.zeros_like(self._params)
        self._weights = torch.from_numpy(np.asarray(weights, np.float32))
        self._neighbors = neighbors
        self._listeners = [[i for i in range(agents) if j in neighbors[i]] for j in range(agents)]
        self._num_classes = num_classes
        self._lambda_m, self._lambda_d = lambda_m, lambda_d
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay

    def parameters(self) -> dict[str, np.ndarray]:
        """The agents' parameters as they are now, by name, leaves [agents, ...]."""
        parts = torch.split(self._params, self._sizes, dim=1)
        return {
            name: part.reshape(len(part), *shape).numpy().copy()
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of all agents: images [agents, batch, C, H, W], labels [agents, batch] int64."""
        mixed = self._weights @ self._params
        self._momenta -= (mixed - self._params) / self._lr
        cross = None
        if self._lambda_m > 0 or self._lambda_d > 0:
            with torch.no_grad():
                cross = self._cross_features(images, labels)
        grads = torch.stack([self._gradient(i, mixed[i], images, labels, cross) for i in self._all])
        grads.add_(mixed, alpha=self._weight_decay)
        self._momenta.mul_(self._momentum).add_(grads)
        self._params = mixed - self._lr * grads.add_(self._momenta, alpha=self._momentum)

    @property
    def _all(self) -> range:
        return range(len(self._neighbors))

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, self._sizes)
        shaped = (part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
        return dict(zip(self._names, shaped, strict=True))

    def _member(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._num_classes).float()

    def _cross_features(self, images: Tensor, labels: Tensor) -> tuple[dict, list]:
        """z[i, j] = features of j's model on i's batch; for each j, class sums and counts of these."""
        z, returned = {}, []
        for j in self._all:
            visited = self._listeners[j]
            features, _ = self._model(self._views(self._params[j]), images[visited].flatten(0, 1))
            z |= {
                (i, j): part for i, part in zip(visited, features.chunk(len(visited)), strict=True)
            }
            member = self._member(labels[visited].flatten())
            returned.append((member.T @ features, member.sum(dim=0)))
        return z, returned

    def _gradient(
        self, i: int, flat: Tensor, images: Tensor, labels: Tensor, cross: tuple | None
    ) -> Tensor:
        flat = flat.detach().requires_grad_()
        features, logits = self._model(self._views(flat), images[i])
        loss = F.cross_entropy(logits, labels[i])
        if cross is not None:
            z, returned = cross
            with torch.no_grad():
                sums, counts = returned[i]
                member = self._member(labels[i])
                counts = (member.sum(dim=0) + counts).clamp(min=1)
                target = ((member.T @ features + sums) / counts[:, None])[labels[i]]
            model_variant = sum(F.mse_loss(features, z[i, j]) for j in self._neighbors[i])
            loss = loss + self._lambda_m * model_variant
            loss = loss + self._lambda_d * F.mse_loss(features, target)
        return torch.autograd.grad(loss, flat)[0]


class Contender:
    """The loop on a benchmark's workload: the same weights and batches as the JAX program's.

    Args:
      work: What it works on; its model is one of MODELS.
      method: Key of METHODS; one on quasi-global momentum.
      start: The agents' parameters in our layout.
    """

    def __init__(self, work: Workload, method: str, start: dict) -> None:
        topology, batch, weight = work.topology, work.batch(), METHODS[method][1]
        neighbors = [
            [int(j) for j, real in zip(row, mask, strict=True) if real]
            for row, mask in zip(topology.neighbors[0], topology.mask[0], strict=True)
        ]
        self._name = work.model
        self._loop = Loop(
            MODELS[work.model],
            to_torch(work.model, start, leading=1),
            topology.weights[0],
            neighbors,
            num_classes=CLASSES,
            lambda_m=weight,
            lambda_d=weight,
            lr=LEARNING_RATE,
        )
        self._images = torch.from_numpy(np.moveaxis(np.asarray(batch.images), -1, 2).copy())
        self._labels = torch.from_numpy(np.asarray(batch.labels, np.int64))

    def run(self, steps: int) -> None:
        """Takes steps."""
        for _ in range(steps):
            self._loop.step(self._images, self._labels)

    def parameters(self) -> dict:
        """The agents' parameters as they are now, in our layout."""
        return from_torch(self._name, self._loop.parameters(), leading=1)
