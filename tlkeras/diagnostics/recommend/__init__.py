"""Which pretrained network for these images on this machine, at which size, frozen or fine-tuned."""
