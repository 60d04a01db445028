"""Where images come from: folders, tables, packaged and TensorFlow Datasets, TFRecord files."""
