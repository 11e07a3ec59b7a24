"""Items as tasks, on a cluster of threads: what is handed over, and what comes back. Real clusters: test_clusters.py."""

import contextlib
import logging
import os
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import numpy as np
import pytest

from experiments.run import machine
from experiments.run.config import UserError
from experiments.run.engines import cluster as engine
from experiments.run.engines.cluster import TASKS_PER_CORE, Tasks, work
from experiments.run.environment import environment
from experiments.run.pool import WorkerLost


class Threads:
    """A cluster whose workers are threads, as many as `count` says at the moment."""

    def __init__(self, count):
        self.count, self.pool, self.cancelled, self.most = count, ThreadPoolExecutor(count), [], 0

    def cores(self):
        return self.count

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def wait_for_any(self, tasks, seconds):
        self.most = max(self.most, len(tasks))
        return list(wait(tasks, seconds, FIRST_COMPLETED).done)

    def result(self, task):
        return task.result()

    def cancel(self, tasks):
        self.cancelled = tasks
        for task in tasks:
            task.cancel()


def square(number):
    if number == "raise":
        raise ValueError("no number")
    time.sleep(0.02)
    return number**2


@pytest.mark.parametrize(("n_jobs", "at_once", "held"), [(-1, 3, TASKS_PER_CORE * 3), (1, 1, 1), (2, 2, 2), (50, 12, 12)])
def test_every_item_is_worked_on_once_and_so_many_are_handed_over(n_jobs, at_once, held):
    cluster, ticks = Threads(3), []
    with Tasks(cluster, square, [(k,) for k in range(12)], n_jobs) as pool:
        assert pool.active_items == set(range(at_once))
        results = list(pool.results(lambda: ticks.append(pool.active_items), 0.01))
    assert sorted(results) == [(k, k * k) for k in range(12)]
    assert cluster.most == held
    assert all(len(active) <= at_once for active in ticks)
    assert not ticks[-1]
    assert not cluster.cancelled


def test_what_the_function_raises_is_its_items_result():
    with Tasks(Threads(2), square, [(1,), ("raise",), (3,)], -1) as pool:
        results = dict(pool.results(lambda: None, 1))
    assert (results[0], results[2]) == (1, 9)
    assert isinstance(results[1], ValueError)


def test_a_worker_that_joins_is_given_work():
    cluster = Threads(1)
    with Tasks(cluster, square, [(k,) for k in range(12)], -1) as pool:
        results = pool.results(lambda: None, 1)
        next(results)
        cluster.count = 4
        next(results)
        next(results)
        assert len(pool.active_items) == 4
        list(results)
    assert cluster.most == TASKS_PER_CORE * 4


def test_what_nobody_waits_for_is_cancelled():
    cluster = Threads(1)
    with Tasks(cluster, square, [(k,) for k in range(12)], -1) as pool:
        next(pool.results(lambda: None, 1))
    assert len(cluster.cancelled) == TASKS_PER_CORE


def test_a_worker_works_on_one_item_at_a_time_however_many_threads_it_has():
    at_work, most = [], []

    def count():
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()

    with Tasks(Threads(4), count, [()] * 8, -1) as pool:
        list(pool.results(lambda: None, 1))
    assert max(most) == 1
    assert threading.active_count() < 20


@pytest.mark.parametrize("key", ["package", "numpy", "git.commit"])
def test_a_worker_with_another_code_or_numpy_is_refused_by_name(key):
    here = {name: environment()[name] for name in ("package", "numpy", "git.commit")}
    assert work(here, square, 3) == 9
    with pytest.raises(UserError, match=rf"^its worker on \S+ has {key} '.*' instead of 'another'$"):
        work({**here, key: "another"}, square, 3)
    assert here["numpy"] == np.__version__


@pytest.fixture
def native_worker(monkeypatch):
    """This process as a worker that was started without the variables, and what a portable sweep expects of it."""
    if not machine.has_avx2():
        pytest.skip("no process is portable here")
    monkeypatch.setattr(engine, "environment", lambda: {**environment(), "machine": "native", "blas_kernel": "SkylakeX"})
    for name in machine.PORTABLE_VARIABLES:
        monkeypatch.delenv(name)
    return {
        **{key: environment()[key] for key in engine.CODE_KEYS},
        "machine": "portable",
        "blas_kernel": "Haswell",
        "simd": "X86_V3",
    }


def test_a_worker_that_was_started_native_has_a_portable_process_work(native_worker):
    assert work(native_worker, os.getenv, "OPENBLAS_CORETYPE") == "Haswell"
    assert work(native_worker, os.getppid) == os.getpid()
    # What is printed there is not taken for an answer.
    assert work(native_worker, print, "hello") is None
    with pytest.raises(ZeroDivisionError):
        work(native_worker, divmod, 1, 0)
    with pytest.raises(WorkerLost, match="its process left with -6"):
        work(native_worker, os.abort)
    with pytest.raises(WorkerLost, match="its process left with 3"):
        work(native_worker, sys.exit, 3)
    # A sweep that is native asks for nothing.
    assert work({key: native_worker[key] for key in engine.CODE_KEYS}, os.getenv, "OPENBLAS_CORETYPE") is None


def test_a_worker_that_cannot_be_portable_is_refused_by_name(native_worker, monkeypatch):
    line = r"^its worker on \S+ has machine 'native' instead of 'portable', blas_kernel 'SkylakeX' instead of 'Haswell'$"
    with pytest.raises(UserError, match=r"^its worker on \S+ has numpy .* instead of 'another', machine 'native'"):
        work({**native_worker, "numpy": "another"}, os.getpid)
    monkeypatch.setattr(engine, "has_avx2", lambda: False)
    with pytest.raises(UserError, match=line):
        work(native_worker, os.getpid)
    # Started with the variables, and NumPy's BLAS is another all the same.
    monkeypatch.setattr(engine, "has_avx2", lambda: True)
    monkeypatch.setattr(engine, "portable_variables", lambda: machine.PORTABLE_VARIABLES)
    with pytest.raises(UserError, match=line):
        work(native_worker, os.getpid)


def test_a_sweep_s_output_has_no_errors_of_dask_s_own_log(monkeypatch):
    dask = pytest.importorskip("experiments.run.engines.dask")
    monkeypatch.setattr(dask, "check_answers", lambda *_: None)
    monkeypatch.setattr(dask, "Client", lambda address: contextlib.nullcontext())
    with dask.connect("tcp://127.0.0.1:1", "hydra.launcher"):
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
        assert {"distributed", "distributed.client", "distributed.comm.tcp"} <= {*names}
        assert [name for name in names if logging.getLogger(name).isEnabledFor(logging.ERROR)] == []
