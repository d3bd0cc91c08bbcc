"""LeRobot datasets as a Grain source."""
