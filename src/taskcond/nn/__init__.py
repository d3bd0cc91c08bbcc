"""From a task id to a network: what conditions a model."""
