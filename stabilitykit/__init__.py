"""Why neural networks stop learning, and what to do about it."""

__version__ = "0.1.0"
