"""The verbs of this repository that are more than a line of make."""
