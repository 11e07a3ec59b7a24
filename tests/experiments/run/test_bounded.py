"""Files of a stranger's: refused in words, within a bound of time and memory."""

import io
import os
import resource
import struct
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.run import bounded
from experiments.run.config import UserError
from experiments.run.memory import check_memory


@pytest.fixture(autouse=True)
def little_memory():
    """What wants more than 1 GiB beyond what this process has fails, and with it its test."""
    with open("/proc/self/statm") as sizes:
        own = int(sizes.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


LAUGHS = ["a: &a [x, x]", *(f"{new}: &{new} [*{old}, *{old}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True))]
YAML = {
    "refers to its own anchor": ["\n".join(LAUGHS), "a: &a\n  b: *a", "a: &a 1\nb: *a"],
    "nests them more than 20 deep": ["a: " + "[" * 500, "a:\n" + "\n".join(" " * k + "-" for k in range(1000)), "{a: " * 30],
    "more than 20000 values": ["\n".join(f"k{k}: 1" for k in range(10**5)), "a: [" + "1," * 10**5 + "]"],
    "more than 10000 letters": ["a: " + ":".join(["1"] * 10**5), f"a: {'k' * 10**5}"],
    "it has 2000000 bytes": ["#" * 2 * 10**6],
    "it must hold a mapping": ["", "[1]", "text", "1: 2", "null: a", "!!set {a}"],
    "could not determine a constructor": ["a: !!python/object/apply:os.system [echo]", "a: !mine 3"],
    "digits": ["a: " + "1" * 9000],
    r"\w": [
        "a: " + "[" * 10**5,
        "a: !!binary ÿ",
        "a: b: c",
        "{",
        "a: *b",
        "\x1b",
        "a: 2001-99-99",
        "<<: 3",
        "[a]: b",
        "a: 1\n---\nb: 2",
        "\x00",
    ],
}


@pytest.mark.parametrize("words", YAML)
def test_yaml_that_grows_hides_or_deceives_is_refused(tmp_path, words):
    file = tmp_path / "config.yaml"
    for content in YAML[words]:
        file.write_text(content)
        with pytest.raises((ValueError, yaml.YAMLError), match=words):
            bounded.read_yaml_mapping(file)


def test_json_that_is_no_mapping_of_text_is_refused(tmp_path):
    file = tmp_path / "environment.json"
    numbers = ['{"a": 1}', '{"a": ["x"]}', '{"a": null}', "[]", "1", "NaN", "1" * 9000]
    for content in ("[" * 10**5, '{"a":' * 5000 + "1" + "}" * 5000, "", "{", "{" + " " * 2**21 + "}", "\xff\xfe", *numbers):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=r"\w"):
            bounded.read_json_texts(file)


def test_text_that_is_none_is_refused(tmp_path):
    file = tmp_path / "git.diff"
    for content in (b"\xff\xfe\x00", b"a\x80"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="can't decode"):
            bounded.read_text(file)


READ = [bounded.read_text, bounded.read_yaml_mapping, bounded.read_json_texts, bounded.check_array, bounded.check_arrays]


@pytest.mark.parametrize("read", READ)
def test_what_is_no_file_is_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "secret").symlink_to("/etc/passwd")
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"it is no plain file|it is a link"):
            read(file)
    with pytest.raises(ValueError, match="it is no plain file"):
        read(Path("/dev/zero"))


def npy(shape, descr="<f8", data=b"", version=(1, 0)):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


ARRAYS = {
    "its header says": [
        npy("(2**60,)".replace("2**60", str(2**60))),
        npy(f"({2**40},)"),
        npy(f"({2**40},)", "<f4", bytes(64)),
        npy(f"({2**32}, {2**32})"),
        npy("(-1,)", data=bytes(8)),
        npy("(3,)", data=bytes(16)),
        npy("(3,)", data=bytes(25)),
    ],
    "array in the form": [npy("(1,)", data=bytes(8), version=(3, 0))],
    r"\w|^$": [b"", b"\x93NUMPY", b"not an array", *map(npy, ("1", "()()", "[1]", "(" * 5000)), npy("(1,)", "nothing")],
}


@pytest.mark.parametrize("words", ARRAYS)
def test_an_array_holds_what_its_header_says(tmp_path, words):
    alone, packed = tmp_path / "parameters.npy", tmp_path / "history.npz"
    for content in ARRAYS[words]:
        alone.write_bytes(content)
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("loss.npy", content)
        for read, file in ((bounded.check_array, alone), (bounded.check_arrays, packed)):
            with pytest.raises((ValueError, EOFError, TypeError, tokenize.TokenError), match=words):
                read(file)


def test_honest_arrays_are_told_with_shape_and_dtype(tmp_path):
    values = {"a": np.zeros((3, 0)), "b": np.float32(1), "c": np.ones((2, 3), np.int64, "F"), "d": np.zeros(2, "u1,<f8")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **values)
        expected = {name: (np.shape(value), np.asarray(value).dtype) for name, value in values.items()}
        assert bounded.check_arrays(tmp_path / "a.npz") == expected
    np.save(tmp_path / "a.npy", values["c"])
    assert bounded.check_array(tmp_path / "a.npy") == ((2, 3), np.int64)
    with pytest.raises(ValueError, match="magic string"):
        bounded.check_array(tmp_path / "a.npz")


def test_an_archive_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path):
    file = tmp_path / "history.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("loss.npy", "w", force_zip64=True) as member:
        member.write(npy(f"({2**24},)"))
        for _ in range(128):
            member.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"bytes unpack to 134"):
        bounded.check_arrays(file)


def test_arrays_that_lie_over_each_other_are_refused(tmp_path):
    """A hundred entries of the directory that share one member's bytes."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.npy", npy(f"({2**20},)", data=bytes(2**23)))
        archive.filelist *= 100
        archive._didModify = True
    file = tmp_path / "history.npz"
    file.write_bytes(inner.getvalue())
    with pytest.raises(ValueError, match="bytes unpack to 838"):
        bounded.check_arrays(file)


def test_a_directory_of_a_hundred_thousand_arrays_and_another_packing_are_refused(tmp_path):
    file = tmp_path / "history.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number:030d}.npy", b"")
    with pytest.raises(ValueError, match="its directory is too long"):
        bounded.check_arrays(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy("(1,)", data=bytes(8)))
    with pytest.raises(ValueError, match="packed in a way"):
        bounded.check_arrays(file)


def test_a_file_larger_than_a_share_of_the_memory_is_not_read(tmp_path):
    file = tmp_path / "parameters.npy"
    count = bounded.total_memory() // 8
    file.write_bytes(npy(f"({count},)"))
    os.truncate(file, file.stat().st_size + 8 * count)
    with pytest.raises(ValueError, match="at most are read"):
        bounded.check_array(file)


@pytest.mark.parametrize("size", [2**60, 10**400])
def test_what_no_memory_takes_is_said_in_words(size):
    with pytest.raises(UserError, match=r"^depth is 9, which does not fit: it takes .* GiB of memory, this machine has .* GiB$"):
        check_memory("depth is 9", size)
    check_memory("depth is 9", 2**20)
