"""From a checkpoint's parameters into a model's, in memory: plan, tables and report."""
