"""Sealing: what is sealed is opened by who has the key, for the same user, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_client.sealing import SealingKey
from recparams_client.sealing import seal as client_seal
from recparams_server.serving.sealing import MOST_RECORD_BYTES, TAG_BYTES, Sealing

keys = st.binary(min_size=16, max_size=64).map(lambda half: half + half[::-1])
records = st.binary(max_size=MOST_RECORD_BYTES)


@given(keys, st.binary(max_size=20), st.binary(max_size=130), records)
def test_round_trip(key: bytes, prefix: bytes, user: bytes, record: bytes) -> None:
    sealed = Sealing(key, prefix).seal(user, record)
    assert len(sealed) == TAG_BYTES + len(record)
    assert Sealing(key, prefix).open(user, sealed) == record
    assert Sealing(key, prefix + b"x").open(user, sealed) is None
    assert Sealing(key, prefix).open(user + b"x", sealed) is None


@given(keys, st.lists(st.binary(max_size=130), max_size=5), st.integers(1, MOST_RECORD_BYTES))
def test_all_at_once_are_sealed_alike(key: bytes, users: list[bytes], size: int) -> None:
    sealing = Sealing(key, b"")
    records = np.random.default_rng(size).integers(0, 256, (len(users), size), dtype=np.uint8)
    alone = [sealing.seal(user, bytes(row)) for user, row in zip(users, records, strict=True)]
    assert sealing.seal_all(users, records) == alone
    sealed = np.frombuffer(b"".join(alone), dtype=np.uint8).reshape(-1, TAG_BYTES + size)
    opened, are_open = sealing.open_all(users, sealed)
    assert are_open.all() and (opened == records).all()
    assert not sealing.open_all([user + b"x" for user in users], sealed)[1].any()


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), records)
def test_the_client_seals_alike(id_: bytes, key: bytes, record: bytes) -> None:
    token = client_seal(SealingKey(id_, key, 0.0), b"ada", record)
    assert token[1 + len(id_) :] == Sealing(key, id_).seal(b"ada", record)


def test_a_known_answer() -> None:
    """The bytes are those of OpenSSL's BLAKE2BMAC, for tag and key stream."""
    sealed = Sealing(bytes(range(64)), b"\x04").seal(b"ada", b"a record")
    assert sealed.hex() == "e539d6b529f9c1c330fa29cfc1b5d71f" + "093958443be94329"


@pytest.mark.parametrize("bit", range(8 * (TAG_BYTES + 8)))
def test_any_changed_bit_is_refused(bit: int) -> None:
    sealing = Sealing(bytes(range(64)), b"")
    sealed = bytearray(sealing.seal(b"ada", b"a record"))
    sealed[bit // 8] ^= 1 << bit % 8
    assert sealing.open(b"ada", bytes(sealed)) is None
    row = np.frombuffer(bytes(sealed), dtype=np.uint8)[np.newaxis]
    assert not sealing.open_all([b"ada"], row)[1].any()
