"""`python -m sculpt4d_jax`: the command `sculpt4d`, where it is not on PATH."""

from sculpt4d_jax import cli

if __name__ == "__main__":
  cli.main()
