"""Serves a page that makes meshes of clips: upload, look, make, play.

  sculpt4d app
  sculpt4d app --port 8080 --preset sculpt4d --weights weights/hunyuan3d
  sculpt4d app --host 0.0.0.0        for others too: there is no password

It needs the extra "app". One clip is made at a time; others wait.
"""

import argparse
import importlib.util

from sculpt4d_jax.cli import compile_cache
from sculpt4d_jax.cli import options
from sculpt4d_jax.errors import MissingPackageError

_LOOPBACK = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "--host",
    default=_LOOPBACK,
    help=f"address to listen on; default: {_LOOPBACK}, this machine alone",
  )
  parser.add_argument(
    "--port", type=int, help="port; default: the first free one from 7860"
  )
  parser.add_argument(
    "--preset",
    metavar="NAME",
    help="preset of the model; default: those that ship weights",
  )
  options.add_weights(parser)
  parser.add_argument(
    "--browser", action="store_true", help="open a browser too"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if importlib.util.find_spec("gradio") is None:
    raise MissingPackageError(
      "The page needs the package gradio: pip install 'sculpt4d-jax[app]'."
    )
  from sculpt4d_jax.cli import app_page

  compile_cache.use_default()
  app_page.serve(
    app_page.build(args.preset, args.weights),
    host=args.host,
    port=args.port,
    open_browser=args.browser,
  )
