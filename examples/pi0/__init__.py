"""π0 and π0.5 in plain Flax NNX, conditioned on the task. Begin with `model.py`."""
