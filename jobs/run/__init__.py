"""A run directory: states, files, lock, attempts, stop, resume. Never imports torch, numpy or PIL."""
