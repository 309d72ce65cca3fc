"""Keeps a FastAPI application on a Hugging Face Space up: README.md is its map.

It imports nothing of the project that it runs. What it must know of that project comes as
arguments (Project, settings, Resolution), so it could be installed from a package index instead.
"""

__version__ = "0.2.0"
