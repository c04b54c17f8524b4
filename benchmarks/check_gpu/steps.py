"""The steps of the check: commands, time limits and questions."""

from collections.abc import Sequence
import dataclasses
import sys


@dataclasses.dataclass(frozen=True)
class Step:
  """One step; it runs in a separate process.

  Attributes:
    name: Name of its folder.
    question: The question that it answers.
    module: Module that is run.
    arguments: Its arguments.
    seconds: Time limit; None takes the remaining time.
    needs_gpu: Whether a CPU skips the step.
  """

  name: str
  question: str
  module: str
  arguments: Sequence[str] = ()
  seconds: float | None = 60.0
  needs_gpu: bool = False

  def command(self) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", self.module, *self.arguments]


_FULL = "--config=configs/sculpt4d.py"
_PARTS = "benchmarks.check_gpu.parts"


def of_gpu() -> list[Step]:
  """The check of a GPU, about ten minutes; the most important steps first."""
  bench = "kernels.block_sparse_attention.bench"
  return [
    Step(
      "versions", "Which machine and software is this?", _PARTS, ["versions"]
    ),
    Step(
      "kernels",
      "Do the attention kernels equal the reference, forward and gradients, with"
      " all tiles?",
      _PARTS,
      ["kernels"],
      120.0,
      needs_gpu=True,
    ),
    Step(
      "kernel_times",
      "How fast are they next to dense, cuDNN and FlexAttention?",
      bench,
      ["--shapes", "full_8f", "full_16f", "full_32f", "full_64f", "--rounds=3"],
      90.0,
    ),
    Step(
      "guided_step",
      "What takes a guided step of the released size, in time and memory?",
      _PARTS,
      ["guided_step", _FULL],
      90.0,
    ),
    Step(
      "little_memory",
      "And what with the savings for a card of 8 GB?",
      _PARTS,
      ["guided_step", _FULL, "--for_gb=8"],
      120.0,
    ),
    Step(
      "sample",
      "What takes a full sample of it, against --plan?",
      _PARTS,
      ["sample", _FULL],
      120.0,
    ),
    Step(
      "decode",
      "What takes decoding and meshing a frame of it?",
      _PARTS,
      ["decode", _FULL],
      60.0,
    ),
    Step(
      "lora_step",
      "What takes a training step of it under LoRA?",
      _PARTS,
      ["lora_step", _FULL],
      90.0,
    ),
    Step(
      "tiny_step",
      "What takes a training step of the small model?",
      _PARTS,
      ["train_step", "--config=configs/tiny.py"],
      30.0,
    ),
    _training(),
  ]


def dry() -> list[Step]:
  """The same steps at sizes for a CPU, as a test."""
  small = "--config=configs/tiny.py"
  bench = "kernels.block_sparse_attention.bench"
  return [
    Step(
      "versions", "Which machine and software is this?", _PARTS, ["versions"]
    ),
    Step(
      "kernels",
      "Does the kernel of this platform equal the reference?",
      _PARTS,
      ["kernels", "--small"],
      300.0,
    ),
    Step(
      "kernel_times",
      "How fast is it?",
      bench,
      ["--shapes", "tiny_train", "--rounds=1", "--no_peers"],
      300.0,
    ),
    Step(
      "guided_step", "A guided step?", _PARTS, ["guided_step", small], 300.0
    ),
    Step(
      "little_memory",
      "And with layers and skips on the host?",
      _PARTS,
      [
        "guided_step",
        small,
        "--config.sampling.stream_layers",
        "--config.sampling.skips_on_host",
      ],
      300.0,
    ),
    Step(
      "sample", "A full sample?", _PARTS, ["sample", small, "--steps=3"], 300.0
    ),
    Step("decode", "Decoding?", _PARTS, ["decode", small], 300.0),
    Step("tiny_step", "A training step?", _PARTS, ["train_step", small], 300.0),
  ]


def _training() -> Step:
  return Step(
    "training",
    "How far does the small model's training get in the time that is left?",
    "launch.train",
    ["--config=configs/tiny.py", "--workdir=OUTPUT/training_run"],
    None,
  )
