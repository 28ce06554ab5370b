"""Errors a user can meet: each message names the argument, its value and what would work."""


class DitSparseError(Exception):
    """Base of every error raised on purpose by this package."""


class ArgumentError(DitSparseError, ValueError):
    """An argument has a value that cannot work."""


class UnknownNameError(DitSparseError, KeyError):
    """No method, profile or model has this name; the message lists the nearest ones."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class UnsupportedModelError(DitSparseError, TypeError):
    """The pipeline or transformer class has no attention that this package can replace."""


class BrokenOutputError(DitSparseError, ArithmeticError):
    """An attention layer gave values that are not finite while a model ran."""


class MissingDependencyError(DitSparseError, ImportError):
    """An optional library is needed for this call and is not installed."""
