"""A load on a server of the v2 protocol: how much it answers, how late, and whether the answers stay right."""

from sepvit_deploy.load.result import Generator, LoadResult, Quantile
from sepvit_deploy.load.run import load

__all__ = ["Generator", "LoadResult", "Quantile", "load"]
