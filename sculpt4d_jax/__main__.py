"""`python -m sculpt4d_jax`: the command `sculpt4d`, where it is not on PATH."""

from sculpt4d_jax.cli import main

if __name__ == "__main__":
  main.main()
