"""What serves requests while one engine is in use."""

from sqlalchemy import Engine

from space_runtime.backends import backend_of
from space_runtime.serving.loop_reader import LoopReader
from space_runtime.serving.worker_pool import WorkerPool


class Serving:
    """An engine and its worker pools. Each thread uses one connection; checks have one more."""

    def __init__(self, engine: Engine, pool_size: int) -> None:
        self.for_writing = engine
        # A second Engine without event listeners, which would slow down every read.
        self.for_reading = Engine(engine.pool, engine.dialect, engine.url, hide_parameters=True)
        self.for_reading_on_demand = engine.execution_options(reading=True)
        self.backend = backend_of(engine)
        if self.backend.has_one_writer and pool_size > 1:
            self.readers = WorkerPool("read", pool_size - 1)
            self.writers = WorkerPool("write", 1)
        else:
            self.readers = self.writers = WorkerPool("work", pool_size)
        self.pools: set[WorkerPool] = {self.readers, self.writers}
        self.loop_reader: LoopReader | None = None
        if self.backend.reads_in_loop(engine):
            self.loop_reader = LoopReader(engine, self.backend)
            self.pools.add(self.loop_reader)
