"""Estimates the device memory that a model needs, without a device.

  sculpt4d plan --preset sculpt4d
  sculpt4d plan --preset sculpt4d --set sampling.num_frames=32

A table of parts and stages, and one of usual devices: whether the model fits,
with which savings, and how many frames at most.
"""

import argparse

from sculpt4d_jax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  options.add_preset(parser, "sculpt4d")


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax import api

  print(api.plan(options.read_preset(args)))
