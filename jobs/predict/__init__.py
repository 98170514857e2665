"""What one does with a trained model, for notebooks and for predict.py; the one room of jobs that imports data and
models.

from jobs.predict import load
model = load("runs/quickstart")            # or a weights.safetensors
images = model.sample(8, seed=0)           # uint8 (8, C, H, W)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.predict.named import UsageError
    from jobs.predict.trained import Trained, load

__all__ = ["Trained", "UsageError", "load"]


def __getattr__(name: str):
    """`load` when it is asked for: it imports torch, which takes seconds that the flags of predict.py need not."""
    if name in __all__:
        from jobs.predict import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
