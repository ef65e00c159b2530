import sys

try:
    import jax  # noqa: F401 (reads its settings from the environment)
except ValueError as error:
    print(f"error: JAX cannot start: {error}; correct that variable or unset it", file=sys.stderr)
    raise SystemExit(2) from None
