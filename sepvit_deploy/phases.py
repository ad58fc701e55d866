"""How far a build is, from the phases within phases that a builder reports."""

from __future__ import annotations

import threading
from collections.abc import Callable

LEAST = 0.005
"""The least progress that is worth a word."""


class Phases:
    """The share done, 0 to 1, of a build that reports steps of phases within phases; it never falls."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._lock = threading.Lock()  # a builder may report from several threads
        self._phases: dict[str, tuple[int, int]] = {}  # steps done and steps in all, of each phase that runs
        self._parents: dict[str, str | None] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (0, max(steps, 1))
            self._parents[name] = parent

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name] = (step + 1, self._phases[name][1])
                self._tell(name)

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)
            self._parents.pop(name, None)

    def _tell(self, name: str | None) -> None:
        share = 0.0
        for _ in self._phases:  # no further out than there are phases
            if name not in self._phases:
                break
            done, steps = self._phases[name]
            share = min((done + share) / steps, 1.0)
            name = self._parents[name]
        if share >= self._best + LEAST:
            self._best = share
            self._report(share)
