"""The application: a folder per concern, wired together in main.py."""

__version__ = "0.1.0"
