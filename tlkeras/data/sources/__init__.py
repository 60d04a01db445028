"""Sources of images: class folders, CSV manifests, packaged sets, TensorFlow Datasets, TFRecord files."""
