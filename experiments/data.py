"""`ccl_jax.runs.inputs`, for mains of one's own that import it from here."""

from ccl_jax.runs.inputs import Data, load, make_feed

__all__ = ["Data", "load", "make_feed"]
