"""The command ``monai-diffeo``, one module a sub-command. Nothing here imports torch before a sub-command runs."""

from monai_diffeo.cli.program import program

__all__ = ["program"]
