"""Asking exported models over the network, and a development server that answers. This imports no TensorFlow."""

from tlkeras.serving.client import Client

__all__ = ["Client"]
