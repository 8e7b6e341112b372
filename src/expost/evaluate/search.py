"""The earlier name of :mod:`expost.statistics.neighbours`."""

from expost.statistics.neighbours import *  # noqa: F403
