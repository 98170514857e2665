"""What a person sees: metrics, TensorBoard, progress, plots, grids, report."""
