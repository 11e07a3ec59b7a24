"""Two engines in one process, and what is printed of them. Their times are looked at by people alone."""

import sys
from functools import partial

import numpy as np
import pytest

import blocks
from tests.benchmarks import __main__ as benchmark
from tests.benchmarks import beside, command, profile, step
from tests.benchmarks.tables import alternate

SMALL = (3, 8, 16, 1)


@pytest.fixture(scope="module")
def engine():
    return beside.Engine(beside.ROOT)


def test_an_engine_has_modules_of_its_own():
    paths = list(sys.path)
    engine = beside.Engine(beside.ROOT)
    assert sys.path == paths
    assert sys.modules["blocks"] is blocks
    assert sys.modules["blocks.network"].Network is blocks.Network
    assert engine.modules["network"].Network is engine.blocks.Network is not blocks.Network

    def parameters(package):
        return package.Network.create([3, 4, 2], rng=np.random.default_rng(0)).parameters

    assert parameters(engine.blocks).tobytes() == parameters(blocks).tobytes()


def test_what_runs_by_numpy_alone_does_in_that_engine_alone(engine):
    calls = [partial(np.add, *np.ones((3, 5)))] * 2

    def programs():
        return [len(module.program(calls)) for module in (engine.modules["program"], step.program)]

    # Two calls are one program with the extra.
    assert programs() == [1, 1]
    assert step.without_compiled(programs, engine.modules["program"])() == [2, 1]


def test_the_command_is_that_checkout_s(tmp_path):
    file = tmp_path / "experiments" / "train.py"
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    file.write_text(f"import sys\nopen({str(tmp_path / 'typed')!r}, 'w').write(' '.join(sys.argv))")
    assert command.time_command(tmp_path) > 0
    typed = (tmp_path / "typed").read_text()
    assert typed.startswith(f"{file} -m network.depth={','.join(map(str, command.DEPTHS))} ")


def test_a_case_of_each_kind_is_a_line(monkeypatch, capsys):
    for name, small in {"SHAPES": [SMALL], "SHAPE": SMALL, "STACKS": [SMALL], "NETWORKS": 8, "UPDATES": 3}.items():
        monkeypatch.setattr(beside, name, small)
    kinds = {getattr(case.prepare, "func", case.prepare): case for case in reversed([*beside.cases()])}
    assert len(kinds) == 7
    cases = list(kinds.values())
    monkeypatch.setattr(beside, "cases", lambda: cases)
    monkeypatch.setattr(beside, "commands", lambda: [])
    monkeypatch.setattr(beside, "alternate", lambda runs, per, rounds: alternate(runs, per, 1))
    monkeypatch.setattr(sys, "argv", ["benchmark", "beside", str(beside.ROOT)])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()[3:]
    assert len(lines) == len(cases)
    for line, case in zip(lines, cases, strict=True):
        assert line[2:].startswith(case.title)
        there, here, unit, of_both = line[2 + len(case.title) :].split()[:4]
        assert unit == case.unit
        assert float(there) > 0
        assert float(here) > 0
        if unit == "MiB":
            # This engine beside itself.
            assert float(of_both) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("content", "paths", "line"),
    [
        ("", [], "beside takes one PATH, it has 0"),
        ("", ["a", "b"], "beside takes one PATH, it has 2"),
        (None, ["other"], "it must be a checkout of this project, 0.4.0 or later: it has no folder blocks"),
        ("", ["other"], "it must be a checkout of this project, 0.4.0 or later: it has no engine to lay beside this one"),
        ("raise ValueError('no')", ["other"], "it must be a checkout of this project, 0.4.0 or later: no"),
        ("", ["nowhere"], "PATH is 'nowhere', it must be a checkout of this project"),
    ],
)
def test_a_wrong_path_is_one_line(content, paths, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    if content is not None:
        (tmp_path / "other" / "blocks").mkdir()
        (tmp_path / "other" / "blocks" / "__init__.py").write_text(content)
    monkeypatch.setattr(sys, "argv", ["benchmark", "beside", *paths])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    assert line in printed.err.splitlines()[-1]
    assert sys.modules["blocks"] is blocks


def test_contestants_take_turns_forth_and_back_and_may_measure_themselves():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 6.0}, per=2, rounds=3)
    assert "".join(order) == "baabbaab"
    assert times["b"].tolist() == [3, 3, 3]


def test_a_profile_counts_the_calls_of_a_step():
    sizes, x, y = step.problem(3, 8, 16)
    clock = profile.Clock()
    for _ in range(2):
        with clock.running():
            step.time_steps(sizes, x, y, 16, 1)()
    products = sum(calls for name, (calls, _) in clock.parts().items() if name.startswith("matmul"))
    # W a_prev and dz a_prev^T of three blocks, W^T dz of two; in the loss, the sum of e^z and that of its terms.
    assert products == 3 + 3 + 2 + 2
