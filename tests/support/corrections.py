"""Published bias-corrected recursions with and without local steps, written once more in float64 NumPy.

As `tests.support.recursions`: every function takes a `Problem` and returns the parameters at the end of
each round, `[rounds, agents, size]`. `p.config` has what the recordings of these methods have.
"""

import numpy as np


def k_gt(p):
    steps, server = p.config["local_steps"], p.config["server_step_size"]
    c = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal c
        y = x
        for _ in range(steps):
            y = y - eta * (p.u(y) + c)
        z = (x - y) / (steps * eta)
        c = c - z + p.w @ z
        return p.w @ (x - steps * eta * server * z)

    return p.walk(step)


def led(p):
    steps, beta = p.config["local_steps"], p.config["dual_step_size"]
    y = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal y
        for _ in range(steps):
            x = x - eta * p.u(x) - beta * y
        mixed = p.w @ x
        y = y + x - mixed
        return mixed

    return p.walk(step)


def proxskip(p):
    v = lazy(p, p.config["chi"])
    y = np.zeros_like(p.x0)

    def step(x, t, eta, _):
        nonlocal y
        z = x - eta * p.u(x) - y
        if not p.config["communicate"][t]:
            return z
        y = y + p.config["dual_step_size"] * (z - v @ z)
        return v @ z

    return p.walk(step)


def lazy(p, chi=1.0):
    return np.eye(p.agents) - (np.eye(p.agents) - p.w) / (2 * chi)


def differences(p, step):
    """Recursions in x_t, x_{t-1}, u_t and u_{t-1}; x_{-1} and u_{-1} are None."""
    before = None, None

    def advance(x, t, eta, _):
        nonlocal before
        u = p.u(x)
        new = step(x, before[0], eta * u, before[1])
        before = x, eta * u
        return new

    return p.walk(advance)


def exact_diffusion(p):
    v = lazy(p)
    return differences(p, lambda x, y, u, w: v @ (x - u) if y is None else v @ (2 * x - y - u + w))


def nids(p):
    v = lazy(p)
    return differences(p, lambda x, y, u, w: x - u if y is None else v @ (2 * x - y - u + w))


def extra(p):
    return differences(
        p,
        lambda x, y, u, w: p.w @ x - u if y is None else x + p.w @ x - (y + p.w @ y) / 2 - u + w,
    )


def simple_tracking(p):
    return differences(p, lambda x, y, u, w: p.w @ x - u if y is None else p.w @ x + x - y - u + w)


def aug_dgm(p, mixed=True):
    y = u = None

    def step(x, t, eta, _):
        nonlocal y, u
        new = p.u(x)
        later = lambda: p.w @ (y + new - u) if mixed else p.w @ y + new - u
        y, u = new if y is None else later(), new
        return p.w @ (x - eta * y)

    return p.walk(step)


def atc_tracking(p):
    return aug_dgm(p, mixed=False)


def edm(p):
    m, psi_before = np.zeros_like(p.x0), p.x0

    def step(x, t, eta, _):
        nonlocal m, psi_before
        m = p.beta * m + (1 - p.beta) * p.u(x)
        psi = x - eta * m
        phi, psi_before = psi + x - psi_before, psi
        return p.w @ phi

    return p.walk(step)
