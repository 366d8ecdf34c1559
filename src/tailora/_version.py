"""The version, read by the build and by ``tailora --version``."""

__version__ = "0.1.0"
