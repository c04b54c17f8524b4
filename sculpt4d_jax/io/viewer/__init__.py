"""The page that plays a mesh sequence in a browser, offline, from one file."""

from sculpt4d_jax.io.viewer.page import write_viewer

__all__ = ["write_viewer"]
