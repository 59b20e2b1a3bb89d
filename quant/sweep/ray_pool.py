"""Run calls on the machines of a Ray cluster, in a fresh worker process for each call.

Every machine needs this package, and the sweep's folder, bundles and data under the same paths
(a shared file system). Extra: ray.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions

from .process_pool import call_function
from .units import Outcome

CONNECT_TIMEOUT_S = 10.0


class RayPool:
    """At most `num_workers` tasks side by side, each with `cpus_per_call` cores to itself."""

    def __init__(
        self, address: str, num_workers: int | None = None, *, cpus_per_call: int = 1
    ) -> None:
        """Join a cluster.

        Args:
            address: as ray.init takes it: "auto", "10.0.0.5:6379", "ray://head:10001", or "local"
                to start one on this machine. A cluster that this process has joined already is
                used as it is, and not left when the pool is closed.
            num_workers: None: as many as the cluster's cores allow.
            cpus_per_call: cores that Ray keeps free for each.

        Raises:
            ValueError: no cluster there, or none that has the cores for one call.
        """
        self._running: dict[Any, str] = {}  # reference -> key
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            knock(address)
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
        num_cpus = int(ray.cluster_resources().get("CPU", 0))
        room = num_cpus // cpus_per_call
        if room < 1:
            self.close()
            raise ValueError(
                f"the Ray cluster at {address} has {num_cpus} cores, a call needs {cpus_per_call}"
            )
        self._num_workers = min(room, num_workers or room)
        # Ray's own retries are off: tries are counted in one place, by the sweep. With max_calls a
        # worker ends after its call and gives the memory back.
        self._call = ray.remote(num_cpus=cpus_per_call, max_retries=0, max_calls=1)(call_function)

    @property
    def num_workers(self) -> int:
        """Calls that run at once."""
        return self._num_workers

    def start(self, key: str, function: str, kwargs: Mapping[str, Any]) -> None:
        """Begin a call."""
        self._running[self._call.remote(function, dict(kwargs))] = key

    def wait(self) -> Outcome:
        """Block until any call has ended."""
        (reference, *_), _ = ray.wait(list(self._running), num_returns=1)
        key = self._running.pop(reference)
        try:
            return Outcome(key, **ray.get(reference))
        except ray.exceptions.RayError as error:  # worker or machine lost, out of memory
            lines = str(error).strip().splitlines() or [""]
            return Outcome(key, death=f"{type(error).__name__}: {lines[0]}")

    def close(self) -> None:
        """Cancel what is under way and leave the cluster."""
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        if self._is_ours:
            ray.shutdown()


def knock(address: str) -> None:
    """See whether anything listens at HOST:PORT, which takes Ray itself minutes.

    Raises:
        ValueError: nothing does, or the port is no number.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", "local"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
