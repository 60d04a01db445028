"""The commands: options, one library call, print; `tlkeras.cli.main` gathers them."""
