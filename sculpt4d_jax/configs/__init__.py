"""Presets, under a name that an installed package may have.

In a checkout this file points at the top-level folder `configs/`. A wheel has
that folder's files here instead, because the top-level name `configs` is too
common to install. Presets import each other as `sculpt4d_jax.configs.NAME`,
which works in both.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "configs")]
