"""A robot that does what it is told: ten tasks in one scene, which only their ids tell apart."""
