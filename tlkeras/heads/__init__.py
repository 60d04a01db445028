"""From features to classes: heads that fit on a matrix and become Keras layers."""
