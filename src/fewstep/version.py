"""The version of the package, which everything may import: this module imports nothing."""

__version__ = "0.2.0"
