"""Lengths that strangers announce are followed however the bytes are cut up."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.p2p.content.dag_pb import encode_varint
from openlora.p2p.host.framing import FrameLengths

MAX_BYTES = 300


def framed(size: int) -> bytes:
    return encode_varint(size) + b"\xff" * size


@given(st.lists(st.integers(0, MAX_BYTES)), st.lists(st.integers(0, 4000)))
def test_frames_that_fit_pass_in_any_pieces(sizes: list[int], cuts: list[int]) -> None:
    stream = b"".join(map(framed, sizes))
    frames = FrameLengths(MAX_BYTES, "too-large")
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert all(frames.fit(stream[start:end]) for start, end in pairwise(edges))


@given(st.lists(st.integers(0, MAX_BYTES)), st.integers(MAX_BYTES + 1, 1 << 40))
def test_the_first_that_does_not_fit_is_found_before_its_content(sizes: list[int], size: int) -> None:
    frames = FrameLengths(MAX_BYTES, "too-large")
    assert frames.fit(b"".join(map(framed, sizes)))
    assert not frames.fit(encode_varint(size))


@pytest.mark.parametrize("endless", [b"\x80" * 10, b"\xff" * 10])
def test_a_length_without_end_does_not_fit(endless: bytes) -> None:
    assert not FrameLengths(MAX_BYTES, "too-large").fit(endless)
