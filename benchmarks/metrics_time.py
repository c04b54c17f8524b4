r"""Times the scoring of one clip by each protocol.

  # The bars: `project` at most 10 s on one core, `actionbench` at most 60 s on
  # two.
  taskset -c 0 python -m benchmarks.metrics_time --protocols=project

  python -m benchmarks.metrics_time --protocols=motion324,sculpt4d,actionbench

Spheres of 5,120 faces in 16 frames, whose surfaces are 0.1 apart: the slow case
of nearest neighbours. Two frames are scored before, so that nothing is compiled
while the clock runs.
"""

from collections.abc import Sequence
import functools
import os
import time

from absl import app
from absl import flags
import trimesh

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.geometry import mesh as mesh_lib

_PROTOCOLS = flags.DEFINE_list("protocols", ["project"], "Protocols to time.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 16, "Frames.", lower_bound=1)


def clip(radius: float, num_frames: int) -> sequences.ShapeSequence:
  """A sphere that moves by 0.01 a frame."""
  ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
  return sequences.ShapeSequence(
    tuple(
      mesh_lib.TriangleMesh(ball.vertices + [0.01 * t, 0.0, 0.0], ball.faces)
      for t in range(num_frames)
    )
  )


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  sides = [clip(radius, _NUM_FRAMES.value) for radius in (0.5, 0.6)]
  cores = len(os.sched_getaffinity(0))
  rows = [["protocol", "seconds", "processor s"]]
  for name in _PROTOCOLS.value:
    protocol = protocol_table.find(name)
    score = functools.partial(
      evaluate.score_clip, protocol=protocol, name=name, workers=-1
    )
    score(*(side.first(2) for side in sides))
    start = time.monotonic(), time.process_time()
    score(*sides)
    spent = time.monotonic() - start[0], time.process_time() - start[1]
    rows.append([name, *(f"{seconds:.1f}" for seconds in spent)])
  faces = sides[0].meshes[0].num_faces
  print(f"{_NUM_FRAMES.value} frames of {faces} faces, {cores} cores\n")
  print(evaluator.layout(rows, False))


if __name__ == "__main__":
  app.run(main)
