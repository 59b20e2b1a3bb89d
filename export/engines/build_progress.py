"""Join the phases within phases that TensorRT's builder reports into one share of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# (share done, 0 to 1; what is being done)
ShareDone = Callable[[float, str], None]


@dataclass(slots=True)
class _Phase:
    parent: str | None
    num_steps: int
    done: int = 0


class PhaseTracker:
    """The share never falls: a phase that runs several times in its parent's step counts once."""

    def __init__(self, report: ShareDone) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins; its parent is one that has not finished."""
        self._phases[name] = _Phase(parent, max(1, num_steps))
        self._tell(name)

    def step(self, name: str, step: int) -> None:
        """Steps are counted from 0 and told when they are done."""
        if (phase := self._phases.get(name)) is not None:
            phase.done = min(max(phase.done, step + 1), phase.num_steps)
            self._tell(name)

    def finish(self, name: str) -> None:
        """All of its steps are done."""
        self._phases.pop(name, None)

    def _tell(self, name: str) -> None:
        share = 0.0
        for phase_name in self._path(name):  # from inside out: a share is a part of a step
            phase = self._phases[phase_name]
            share = min(1.0, (phase.done + share) / phase.num_steps)
        self._share = max(self._share, share)
        self._report(self._share, name)

    def _path(self, name: str) -> list[str]:
        """The phase and those it is in; a parent that is unknown, or comes again, ends it."""
        path: list[str] = []
        current: str | None = name
        while current in self._phases and current not in path:
            path.append(current)
            current = self._phases[current].parent
        return path
