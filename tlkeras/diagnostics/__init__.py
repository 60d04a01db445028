"""What can be known before training: data checks, learning rates, features, recommendations."""
