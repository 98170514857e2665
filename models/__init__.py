"""Tensors in, tensors out: networks, losses, schedules. Imports neither `jobs` nor `data`."""
