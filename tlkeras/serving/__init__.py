"""Client of served models, and a development server; the client's REST side imports no TensorFlow."""

from tlkeras.serving.client import Client

__all__ = ["Client"]
