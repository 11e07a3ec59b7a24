"""Published results beside the engine's."""

import json

import pytest

from experiments import verify
from experiments.published import descent
from tests.published import bits


def test_the_published_training_curves_are_reproduced():
    """Other sections are in the tests below, or computed by other tests; the command itself, whole, is run by .ci/run."""
    rows = list(verify.training_curves())
    assert rows
    assert [row for row in rows if not row.holds] == []


def test_the_command_prints_and_records_the_table(lab):
    output = lab.run("--only", "scaling", "--only", "catapult", module="experiments.verify")
    assert "4 of 4 results reproduced" in output
    (run,) = lab.runs("verify")
    assert run.info.status == "FINISHED"
    table = json.loads(lab.artifact(run, "table.json").read_text())
    assert table["columns"] == ["what", "source", "published", "ours", "tolerance", "holds"]
    assert len(table["data"]) == 4


def test_a_result_that_is_missed_is_reported_and_ends_the_command_with_1(lab, monkeypatch, capsys):
    largest = descent.largest_curvature
    monkeypatch.setattr(descent, "largest_curvature", lambda x: 1.001 * largest(x))
    monkeypatch.setattr("sys.argv", ["verify", "--only", "stable_rate", "--uri", lab.uri])
    with pytest.raises(SystemExit) as left:
        verify.main()
    assert left.value.code == 1
    assert [run.info.status for run in lab.runs("verify")] == ["FAILED"]
    printed = capsys.readouterr().out
    assert "NO  iris: lambda_max" in printed
    assert "ok  iris: sharpness of softmax regression" in printed


def test_an_unknown_section_is_one_line(lab):
    output = lab.run("--only", "astrology", module="experiments.verify", status=2)
    assert "invalid choice: 'astrology'" in output


def test_the_default_sweep_and_every_kind_activation_and_optimizer_have_published_bits():
    published = json.loads(bits.FILE.read_text())
    assert {name: set(group) for name, group in published.items()} == {name: set(group) for name, group in bits.runs().items()}
