"""Published recursions of decentralized methods, written once more: float64 NumPy, step by step.

Agent i has the gradient A_i (x - c_i). Every function takes a `Problem` and returns the parameters at
the end of each step, `[steps, agents, size]`, as the authors' own code would record them. Symbols as
in the docstrings of `ccl_jax.algorithms`; nothing of the package is used here.
"""

import numpy as np
from scipy.optimize import nnls


class Problem:
    """Quadratic losses, a graph, a schedule and a method's settings."""

    def __init__(self, w, lr, seed=0, size=6, **config):
        rng = np.random.default_rng(seed)
        self.w_t = np.asarray(w, float).reshape(-1, *np.shape(w)[-2:])
        self.w = self.w_t[0]
        self.agents, self.size = len(self.w), size
        bases = [np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(self.agents)]
        self.a = np.stack([q @ np.diag(rng.uniform(0.5, 2, size)) @ q.T for q in bases])
        self.c = 2 * rng.normal(size=(self.agents, size))
        self.start = rng.normal(size=size)
        self.x0 = np.tile(self.start, (self.agents, 1))
        self.lr = np.asarray(lr, float)
        defaults = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "gossip_rate": 1.0}
        self.config = defaults | config
        self.beta, self.lam = self.config["momentum"], self.config["weight_decay"]
        self.gamma = self.config["gossip_rate"]

    def g(self, x):
        return np.einsum("ixy,iy->ix", self.a, x - self.c)

    def u(self, x):
        return self.g(x) + self.lam * x

    def cross(self, x):
        """`[i, j]`: the model of j on the data of i."""
        return np.einsum("ixy,ijy->ijx", self.a, x[None] - self.c[:, None])

    def momentum(self):
        m = np.zeros_like(self.x0)

        def advance(u):
            nonlocal m
            m = self.beta * m + u
            return u + self.beta * m if self.config["nesterov"] else m

        return advance

    def walk(self, step):
        """Calls `x = step(x, t, eta, eta_prev)` for all t."""
        x, ends = self.x0, []
        for t, eta in enumerate(self.lr):
            x = step(x, t, eta, self.lr[max(t - 1, 0)])
            ends.append(x)
        return np.stack(ends)


def dsgd_adapt_then_combine(p):
    mom = p.momentum()
    return p.walk(lambda x, t, eta, _: p.w @ (x - eta * mom(p.u(x))))


def dsgd_combine_then_adapt(p):
    mom = p.momentum()
    return p.walk(lambda x, t, eta, _: p.w @ x - eta * mom(p.u(x)))


def dsgd_at_the_mixed_point(p):
    mom = p.momentum()

    def step(x, t, eta, _):
        xt = x + p.gamma * (p.w @ x - x)
        return xt - eta * mom(p.u(xt))

    return p.walk(step)


def adam(p):
    first, second = np.zeros_like(p.x0), np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal first, second
        u = p.u(x)
        first, second = 0.9 * first + 0.1 * u, 0.999 * second + 0.001 * u * u
        root = np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8
        return p.w @ (x - eta / (1 - 0.9 ** (t + 1)) * first / root)

    return p.walk(step)


def decentlam(p):
    m = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal m
        m = p.beta * m + (x - p.w @ (x - eta * p.u(x))) / eta
        return x - eta * m

    return p.walk(step)


def quasi_global_ema(p):
    f = p.config.get("ema_factor", 1 - p.beta)
    mh = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal mh
        u = p.u(x)
        m = p.beta * mh + u
        new = p.w @ (x - eta * (u + p.beta * m if p.config["nesterov"] else m))
        mh = (1 - f) * mh + f * (x - new) / eta
        return new

    return p.walk(step)


def quasi_global_ema_at_the_mixed_point(p, gradient=None):
    mh, previous = np.zeros_like(p.x0), p.x0

    def step(x, t, eta, eta_prev):
        nonlocal mh, previous
        xt = x + p.gamma * (p.w @ x - x)
        mh = p.beta * mh + (1 - p.beta) * (previous - xt) / eta_prev
        previous = xt
        u = (gradient(x, xt) if gradient else p.g(xt)) + p.lam * xt
        m = p.beta * mh + u
        return xt - eta * (u + p.beta * m if p.config["nesterov"] else m)

    return p.walk(step)


def quasi_global_adam(p):
    first, q = np.zeros_like(p.x0), np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal first, q
        u = p.u(x)
        first, v = 0.9 * first + 0.1 * u, 0.999 * q + 0.001 * u * u
        root = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
        new = p.w @ (x - eta / (1 - 0.9 ** (t + 1)) * first / root)
        n = (x - new) / (np.linalg.norm(x - new, axis=1, keepdims=True) + 1e-8)
        q = 0.999 * q + 0.001 * n * n
        return new

    return p.walk(step)


def d2(p, lr_safe=False):
    before, u_before = p.x0, np.zeros_like(p.x0)

    def step(x, t, eta, eta_prev):
        nonlocal before, u_before
        u = p.u(x)
        ratio = eta / eta_prev if lr_safe else 1.0
        new = p.w @ (x + ratio * (x - before) - eta * (u - u_before))
        before, u_before = x, u
        return new

    return p.walk(step)


def d2_lr_safe(p):
    return d2(p, lr_safe=True)


def corrected(p, w=None):
    w, mom, k = p.w if w is None else w, p.momentum(), np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal k
        r = -eta * mom(p.u(x))
        new = w @ (x + r + k)
        k = new - x - r
        return new

    return p.walk(step)


def exact_diffusion(p):
    return corrected(p, (np.eye(p.agents) + p.w) / 2)


def gradient_tracking(p):
    mom = p.momentum()
    y = u_before = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal y, u_before
        u = p.u(x)
        y, u_before = p.w @ y + u - u_before, u
        return p.w @ x - eta * mom(y)

    return p.walk(step)


def update_tracking(p):
    mom, k = p.momentum(), np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal k
        r = -eta * mom(p.u(x))
        new, k = p.w @ (x + r + k), p.w @ (k + r) - r
        return new

    return p.walk(step)


def momentum_tracking(p, everywhere=False):
    z = np.zeros_like(p.x0)
    if everywhere:
        g = p.g(p.x0)
        z = (g - g.mean(axis=0)) / (1 - p.beta)
    k = z

    def step(x, t, eta, _):
        nonlocal z, k
        z = p.beta * z + p.u(x)
        new = x + p.gamma * (p.w @ x - x) - eta * (z - k)
        k = (k - z) + p.gamma * (p.w @ (k - z) - (k - z)) + z
        return new

    return p.walk(step)


def momentum_tracking_global_start(p):
    return momentum_tracking(p, everywhere=True)


def gut(p):
    mu, gamma, mom = p.config["tracking_scale"], p.gamma, p.momentum()
    b = 1 + p.beta + (p.beta**2 if p.config["nesterov"] else 0)
    before, h_before, delta_before = p.x0, np.zeros_like(p.x0), np.zeros_like(p.x0)

    def step(x, t, eta, eta_prev):
        nonlocal before, h_before, delta_before
        h = p.w @ x - x
        delta = p.g(x + gamma * h) - h / eta_prev
        y = delta - mu / eta_prev * (p.w @ (x - before) + b * h_before) - mu * delta_before
        before, h_before, delta_before = x, h, delta
        return x + (gamma - gamma**2) * h - eta * mom(y)

    return p.walk(step)


def neighborhood_gradients(p, x, xt, compress=lambda name, z: z):
    """G of NGC: own gradients at xt, cross-gradients at the unmixed x.

    W is uniform, so that an agent of weight 2 w_ii is one that is listed twice and counts twice.
    """
    alpha = p.config["alpha"]
    own, cross = compress("own", p.g(xt)), compress("cross", p.cross(x))
    out = np.empty_like(own)
    for i in range(p.agents):
        listed = np.repeat(np.arange(p.agents), np.round(p.w[i] / p.w[i, i]).astype(int))
        peers = [j for j in listed if j != i]
        total = own[i] + sum((1 - alpha) * cross[i, j] + alpha * cross[j, i] for j in peers)
        out[i] = total / (len(peers) + 1)
    return out


def ngc(p, compress=lambda name, z: z):
    gradient = lambda x, xt: neighborhood_gradients(p, x, xt, compress)
    if p.config.get("quasi_global_ema"):
        return quasi_global_ema_at_the_mixed_point(p, gradient)
    mom = p.momentum()

    def step(x, t, eta, _):
        xt = x + p.gamma * (p.w @ x - x)
        return xt - eta * mom(gradient(x, xt) + p.lam * xt)

    return p.walk(step)


def sign_feedback(p):
    """Sign compression a tensor, with one error memory for each thing that is compressed."""
    errors = {}

    def compress(name, gradient):
        z = gradient + errors.get(name, 0)
        parts = [
            np.sign(part) * np.abs(part).mean(axis=-1, keepdims=True) for part in tensors(p, z)
        ]
        sent = np.concatenate(parts, axis=-1)
        errors[name] = z - sent
        return sent

    return compress


def compressed_ngc(p):
    return ngc(p, sign_feedback(p))


def tensors(p, x):
    split = p.config.get("parameter_split", p.size)
    return [x[..., :split], x[..., split:]] if split < p.size else [x]


def quadratic_programme(r0, rows, margin=0.5):
    """r0 + R^T v for the best v >= margin: a least-squares problem with u = v - margin >= 0."""
    at_margin = r0 + rows.T @ np.full(len(rows), margin)
    u, _ = nnls(rows.T, -at_margin)
    return at_margin + rows.T @ u


def cga(p, mixed=False, compress=lambda name, z: z):
    mom = p.momentum()

    def step(x, t, eta, _):
        xt = x + p.gamma * (p.w @ x - x)
        own, cross = compress("own", p.g(xt if mixed else x)), compress("cross", p.cross(x))
        merged = np.empty_like(own)
        for i in range(p.agents):
            peers = [j for j in np.flatnonzero(p.w[i]) if j != i]
            own_parts, parts = tensors(p, own[i]), tensors(p, cross[peers, i])
            merged[i] = np.concatenate(
                [
                    quadratic_programme(p.w[i, i] * o, p.w[i, peers, None] * rows)
                    for o, rows in zip(own_parts, parts, strict=True)
                ]
            )
        return xt - eta * mom(merged + (p.lam * xt if mixed else 0))

    return p.walk(step)


def cga_own_at_the_mixed_point(p):
    return cga(p, mixed=True)


def compressed_cga(p):
    return cga(p, mixed=True, compress=sign_feedback(p))


def relay(p, by_count=False, overlap=False):
    mom = p.momentum()
    edges = [(i, j) for i in range(p.agents) for j in np.flatnonzero(p.w[i]) if i != j]
    sums = {edge: np.zeros(p.size) for edge in edges}  # (i, j): from j to i
    counts = dict.fromkeys(edges, 0)

    def step(x, t, eta, _):
        nonlocal sums, counts
        z = x - eta * mom(p.u(x))
        into = lambda table, i, besides: sum(
            value for (k, j), value in table.items() if k == i and j != besides
        )
        sent = (
            {(i, j): z[j] + into(sums, j, i) for i, j in edges},
            {(i, j): 1 + into(counts, j, i) for i, j in edges},
        )
        arrived = (sums, counts) if overlap else sent
        s = np.stack([z[i] + into(arrived[0], i, None) for i in range(p.agents)])
        n = np.array([1 + into(arrived[1], i, None) for i in range(p.agents)])[:, None]
        sums, counts = sent
        return s / n if by_count else (s + (p.agents - n) * p.x0) / p.agents

    return p.walk(step)


def relay_counts(p):
    return relay(p, by_count=True)


def relay_overlapped(p):
    return relay(p, overlap=True)


def push_sum(p):
    mom, x, w = p.momentum(), p.x0, np.ones((p.agents, 1))

    def step(z, t, eta, _):
        nonlocal x, w
        push = p.w_t[t % len(p.w_t)]
        x = push @ (x - eta * mom(p.g(z) + p.lam * x))
        w = push @ w
        return x / w

    return p.walk(step)
