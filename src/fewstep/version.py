"""The version of the package. This module imports nothing, so that every other module can import it."""

__version__ = "0.2.0"
