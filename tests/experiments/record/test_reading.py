"""Runs are read a page at a time, from a store that others write to meanwhile."""

from experiments.record import reading
from experiments.record.client import Client


def test_every_run_is_read_once_although_others_are_created_between_pages(lab, monkeypatch):
    monkeypatch.setattr(reading, "MAX_RESULTS", 2)
    lab.make_store()
    client = Client(lab.uri)
    experiment = client.create_experiment("pages")

    def create(number):
        return client.create_run(experiment, start_time=number).info.run_id

    created = [create(number) for number in range(1, 6)]
    runs = reading.search(client, [experiment], "")
    first = next(runs).info.run_id
    # The newest runs come first: the second page begins with the last run of the first one.
    later = create(6)
    found = [first, *(run.info.run_id for run in runs)]
    assert found == created[::-1]
    assert later in [run.info.run_id for run in reading.search(client, [experiment], "")]
