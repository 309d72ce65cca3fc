"""Keeps a FastAPI application on a Hugging Face Space running; README.md has a map of the parts.

It imports nothing from the project it runs. What it needs to know about the project is passed in
(Project, settings, Resolution), so it could be installed from a package index instead.
"""

__version__ = "0.2.0"
