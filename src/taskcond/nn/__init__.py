"""From a task id to a network: lookup, fusions and conditioner."""
