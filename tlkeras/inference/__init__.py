"""Predictions of a run's model: single images, folders, sharded jobs."""
