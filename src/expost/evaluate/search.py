"""The earlier name of :mod:`expost.search`."""

from expost.search import *  # noqa: F403
