import pytest

from openlora.node.errors import RequestError
from openlora.node.sessions.messages import decode_request


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\xa4type\xa1\xff", b"\x81\xa1a" * 100_000 + b"\xc0"])
def test_what_is_no_request_is_refused(body: bytes):
    with pytest.raises(RequestError, match="no request"):
        decode_request(body)
