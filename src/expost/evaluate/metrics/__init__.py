"""One file, one metric (or a family that shares its work), entered into the table of :mod:`.registry` by its decorator."""

from expost.evaluate.metrics import frechet, kid, prd, neighbours, memorisation, fld  # noqa: I001 - the order of tables
from expost.evaluate.metrics.registry import METRICS, Compared, Metric, metric

__all__ = ["METRICS", "Compared", "Metric", "fld", "frechet", "kid", "memorisation", "metric", "neighbours", "prd"]
