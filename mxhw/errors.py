"""Exceptions that end a command with one line, each with its exit status."""

__all__ = ["BuildError", "MxhwError", "StuckError", "ToolError", "UserError"]


class MxhwError(Exception):
    """Base class; ``exit_status`` is what the command line returns."""

    exit_status = 2


class UserError(MxhwError):
    """The user's input or request cannot be served."""

    exit_status = 1


class BuildError(MxhwError):
    """A step of the build failed on valid input."""

    exit_status = 2


class StuckError(BuildError):
    """A tool that was ended because it got no further; another seed may get on."""


class ToolError(MxhwError):
    """An external tool is missing or unusable; the message names its package."""

    exit_status = 3
