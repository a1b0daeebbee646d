"""A cluster that stands while a benchmark gives its guests one job after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self

from hostd.bench import BenchError
from hostd.cluster.model import Cluster
from hostd.supervisor.preflight import check_kvm, prepare
from hostd.supervisor.supervisor import Supervisor


class Standing:
    """The cluster, running. A context manager; made and ended by a thread with an event loop of its own.

    Entering raises BenchError when a guest can't be started, and what `hostd run` raises.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor")
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        check_kvm()
        plan, boots = prepare(self.cluster)
        self._thread.start()
        self._stack.callback(self._end_loop)
        try:
            self._run(self._start(plan, boots))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise BenchError when a guest has ended, with what it said."""
        assert self._supervisor is not None
        for run in self._supervisor.fleet.runs.values():
            if run.result is not None:
                log = self._supervisor.directory.log(run.name)
                said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                raise BenchError(
                    f"guest {run.name} ended: {run.result['message'] or (said or ['no reason given'])[-1]}"
                )

    async def _start(self, plan: Any, boots: Any) -> None:
        self._supervisor = Supervisor(plan, boots, foreground=True)
        self._stack.callback(lambda: self._run(self._close()))
        await self._supervisor.start()
        await self._supervisor.fleet.wait_started()
        if self._supervisor.fleet.failed_start is not None:
            raise BenchError(self._supervisor.fleet.failed_start)

    async def _close(self) -> None:
        assert self._supervisor is not None
        await self._supervisor.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def as_toml(tables: dict[str, Any]) -> str:
    """Return a cluster's `tables` as the cluster file somebody could run."""

    def value(one: Any) -> str:
        if isinstance(one, list):
            return f"[{', '.join(map(value, one))}]"
        if isinstance(one, dict):
            return f"{{ {', '.join(f'{key} = {value(item)}' for key, item in one.items())} }}"
        return f'"{one}"' if isinstance(one, str) else str(one)

    lines = []
    for kind, entries in tables.items():
        plain = kind == "cluster"
        for name, entry in ({"": entries} if plain else entries).items():
            lines += [f"[{kind}]" if plain else f"[{kind}.{name}]"]
            lines += [f"{key} = {value(item)}" for key, item in entry.items()] + [""]
    return "\n".join(lines)
