"""What makes a Python process a good cluster citizen: specs, run directories, checkpoints, ranks, stopping."""
