"""Parameters in memory: from a checkpoint's tree into a model's."""
