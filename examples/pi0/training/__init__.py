"""Full training of π0 and π0.5 on one machine."""
