"""The pretrained half: a catalog of backbones, their weights, and where each can be cut."""
