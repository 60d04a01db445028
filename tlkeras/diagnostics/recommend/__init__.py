"""Which pretrained network for these pictures on this machine, at which size, frozen or fine-tuned."""
