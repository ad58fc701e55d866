"""Triton's model repositories: written from a model and its passport, and judged without a server.

`served` says what is known of a model, `config` makes Triton's records of that, `contents` the files of each folder,
and `writing` puts them in place. `repository` reads a repository back, and `rules` says what a server would make of it.
"""

from sepvit_deploy.triton.linting import Lint, lint
from sepvit_deploy.triton.repository import Repository, read_repository
from sepvit_deploy.triton.rules import RULES, Finding
from sepvit_deploy.triton.served import Served, Serving
from sepvit_deploy.triton.writing import Placed, Written, write

__all__ = [
    "RULES",
    "Finding",
    "Lint",
    "Placed",
    "Repository",
    "Served",
    "Serving",
    "Written",
    "lint",
    "read_repository",
    "write",
]
