"""Files in, batches out: find slices, decode them once into a pack, read deterministic batches."""
