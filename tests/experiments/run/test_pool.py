import os
import signal
import time

import pytest

from experiments.run.pool import Pool, WorkerLost


def square(number):
    if number == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == "raise":
        raise ValueError("no number")
    time.sleep(0.05)
    return number**2, os.getpid()


def run(items, n_jobs):
    ticks = []
    with Pool(square, [(item,) for item in items], n_jobs) as pool:
        results = dict(pool.results(lambda: ticks.append(set(pool.active_items)), seconds=0.2))
    return results, ticks


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
def test_every_item_is_worked_on_once_in_so_many_processes(n_jobs):
    results, ticks = run(range(6), n_jobs)
    assert {index: result[0] for index, result in results.items()} == {k: k * k for k in range(6)}
    assert len({result[1] for result in results.values()}) <= n_jobs
    assert os.getpid() not in {result[1] for result in results.values()}
    # An item whose result is fetched is under way no more.
    assert all(len(active) <= n_jobs for active in ticks)
    assert not ticks[-1]


def test_a_process_that_is_killed_costs_its_own_item_alone():
    results, _ = run([1, "die", 3, 4, 5, "die", 7], n_jobs=2)
    assert [index for index, result in sorted(results.items()) if isinstance(result, WorkerLost)] == [1, 5]
    assert {index: result[0] for index, result in results.items() if not isinstance(result, WorkerLost)} == {
        0: 1,
        2: 9,
        3: 16,
        4: 25,
        6: 49,
    }


def test_what_the_function_raises_is_its_items_result():
    results, _ = run([1, "raise", 3], n_jobs=2)
    assert isinstance(results[1], ValueError)
    assert results[2][0] == 9


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def test_nothing_waits_behind_a_long_item_while_another_process_is_free():
    with Pool(sleep, [(3,), (0.1,), (0.1,), (0.1,)], 2) as pool:
        assert [index for index, _ in pool.results(lambda: None, 1)] == [1, 2, 3, 0]
