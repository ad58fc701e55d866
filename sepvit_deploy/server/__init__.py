"""The embedded server: Open Inference Protocol v2, pictures to classes, metrics and a page, of one model at a time."""

from sepvit_deploy.server.lane import Lane, Model, Source
from sepvit_deploy.server.run import serve
from sepvit_deploy.server.settings import Settings

__all__ = ["Lane", "Model", "Settings", "Source", "serve"]
