"""Pickles from strangers: what is plain comes back as it was, anything else is refused by name and nothing runs."""

import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinotrack import DinotrackError
from dinotrack.data.pickles import read_pickle
from dinotrack.training.stages import peak_bytes

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def written(tmp_path: Path, content: Any, protocol: int = 4) -> Path:
    return raw(tmp_path, pickle.dumps(content, protocol))


def raw(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_values_come_back_as_they_were(protocol: int, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    content = {
        "video": numbers.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8),
        "points": numbers.random((5, 2, 2)).astype(np.float32),
        "big-endian": numbers.random(3).astype(">f8"),
        "by column": np.asfortranarray(numbers.random((3, 4))),
        "occluded": numbers.random((5, 2)) > 0.5,
        "empty": np.zeros((0, 2)),
        "scalar": np.array(3.0),
        "rest": [None, True, 3, 2.5, "é", b"\x00\xff", (1, [2, (3,)]), {4: {"x": -(2**80)}}],
    }
    found = read_pickle(written(tmp_path, content, protocol))
    assert same(
        {k: v for k, v in content.items() if k != "by column"}, {k: found[k] for k in content if k != "by column"}
    )
    assert np.array_equal(found["by column"], content["by column"])
    assert not any(value.flags.writeable for value in found.values() if isinstance(value, np.ndarray))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpys_numbers_and_lists_of_bytes(protocol: int, tmp_path: Path) -> None:
    pictures = np.array([b"ab\0", b"c"], dtype=object)
    found = read_pickle(written(tmp_path, [np.float64(2.5), np.int64(4), np.bool_(True), pictures], protocol))
    assert found == [2.5, 4, True, [b"ab\0", b"c"]]
    flags = np.array([[True, False], [False, True]], dtype=object)  # as concatenating unlike arrays gives
    assert read_pickle(written(tmp_path, flags, protocol)).tolist() == flags.tolist()


def test_arrays_cannot_be_changed(tmp_path: Path) -> None:
    found = read_pickle(written(tmp_path, np.zeros((2, 2))))
    with pytest.raises(ValueError, match="read-only"):
        found *= 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(content=values, protocol=st.sampled_from([*PROTOCOLS]))
def test_any_plain_value_comes_back(content: Any, protocol: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert same(read_pickle(written(tmp_path_factory.mktemp("plain"), content, protocol)), content)


class Runs:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_is_refused_by_name_and_did_not_run(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    path = written(tmp_path, {"a": [Runs(os.system, f"touch {proof}")]}, protocol)
    with pytest.raises(DinotrackError, match=r"file\.pkl is refused: it names posix\.system"):
        read_pickle(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Runs(eval, "1"), r"names (builtins|__builtin__)\.eval"),
        (Runs(np.load, "x"), "names numpy"),
        (Runs(np.frombuffer, b""), r"names numpy.*\.frombuffer"),
        (Runs(Path, "x"), "names pathlib"),
        (Runs(getattr, "x", "upper"), r"\.getattr"),
        (Runs(bytearray, 10**12), "bytes made of a int are refused"),
        ({1, 2}, "a set|names builtins.set"),
        (np.array([{}, 1], dtype=object).reshape(1, 2), "array of objects is refused"),
        (np.zeros(2, dtype=[("a", "f4")]), "refused; expected numbers"),
        (np.array(["a"]), "refused; expected numbers"),
        (np.dtype("f4"), "holds a dtype"),
    ],
)
def test_what_is_not_plain_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match=message):
        read_pickle(written(tmp_path, content))


def test_an_array_with_less_or_more_content_than_its_shape_is_refused(tmp_path: Path) -> None:
    good = pickle.dumps(np.zeros(7, dtype=np.uint8), 4)
    path = raw(tmp_path, good.replace(b"K\x07\x85", b"K\x09\x85"))  # the shape (7,) as (9,)
    assert path.read_bytes() != good
    with pytest.raises(DinotrackError, match=r"uint8 \(9,\) has 7 bytes"):
        read_pickle(path)


def test_stand_ins_cannot_be_spoilt_for_the_next_file(tmp_path: Path) -> None:
    """BUILD sets attributes on whatever lies on the stack: here on the stand-ins themselves."""
    state = b"}\x8c\x08__call__K\x01s"
    for module, name in (("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"), ("_codecs", "encode")):
        attack = b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"N" + state + b"\x86b."
        list(pickletools.genops(attack))  # a well-formed pickle
        with pytest.raises(DinotrackError):
            read_pickle(raw(tmp_path, attack))
        assert np.array_equal(read_pickle(written(tmp_path, np.arange(3.0), 2)), np.arange(3.0))


def test_a_file_cut_short_is_damaged_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(100.0), "b": [1, "x"]}, 4)
    for length in range(0, len(whole), 29):
        with pytest.raises(DinotrackError, match=r"file\.pkl is (damaged|refused)"):
            read_pickle(raw(tmp_path, whole[:length]))
    with pytest.raises(DinotrackError, match=r"no such file: .*absent\.pkl"):
        read_pickle(tmp_path / "absent.pkl")


def test_small_files_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """A memo of 2^31 places; one text encoded a thousand times over."""
    memo = raw(tmp_path, b"\x80\x04Nr\xff\xff\xff\x7f.")
    before = peak_bytes()
    assert read_pickle(memo) is None
    assert peak_bytes() - before < 1e8
    text = b"X" + (20_000).to_bytes(4, "little") + b"a" * 20_000
    codec = b"c_codecs\nencode\n"
    many = b"\x80\x02" + text + b"q\x00" + codec + b"q\x01" + b"(" + b"h\x01h\x00\x85R" * 1000 + b"l."
    with pytest.raises(DinotrackError, match="makes more bytes than it has"):
        read_pickle(raw(tmp_path, many))


HUGE = (3 * 2**30).to_bytes(8, "little")
"""A length of 3 GiB."""


@pytest.mark.parametrize("code", [pickle.FRAME, pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8])
def test_a_length_in_a_file_reserves_nothing(code: bytes, tmp_path: Path) -> None:
    """Found by atheris: a bytearray was made as long as the file said, before it was read."""
    for head in (b"\x80\x05", b"\x80\x05\x95" + (14).to_bytes(8, "little")):  # without and within a frame
        path = tmp_path / "huge.pkl"
        path.write_bytes(head + code + HUGE + b"short.")
        tracemalloc.start()
        with pytest.raises(DinotrackError, match=r"huge\.pkl is damaged"):
            read_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e7


def test_a_bytearray_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "long.pkl"
    path.write_bytes(pickle.dumps({"a": bytearray(range(256)) * 1000}, 5))
    assert read_pickle(path)["a"] == bytearray(range(256)) * 1000


def test_keys_are_plain_values_too(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match="function as a key"):
        read_pickle(raw(tmp_path, b"\x80\x02}c_codecs\nencode\nK\x01s."))
    with pytest.raises(DinotrackError, match="holds a object"):
        read_pickle(raw(tmp_path, b"\x80\x02cnumpy\nndarray\n."))
    with pytest.raises(DinotrackError, match="one key twice"):
        read_pickle(written(tmp_path, {b"a": 1, "a": 2}, 4))


def test_messages_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError) as error:
        read_pickle(raw(tmp_path, b"\x80\x02c\x1b[31mevil\nname\n."))
    assert "\x1b" not in str(error.value) and "evil.name" in str(error.value)


def test_references_to_one_part_are_walked_once(tmp_path: Path) -> None:
    """Each list holds the one before twice: 2^40 parts, if each mention were a part of its own."""
    nested: Any = [1]
    for _ in range(40):
        nested = [nested, nested]
    found = read_pickle(written(tmp_path, nested))
    assert found[0] is found[1]
    loop: list[Any] = []
    loop.append(loop)
    again = read_pickle(written(tmp_path, loop))
    assert again[0] is again
