"""The training process: ranks, device, collectives, randomness, checkpoints, upkeep, weights."""
