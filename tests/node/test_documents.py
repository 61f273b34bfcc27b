import hashlib
import json

import pytest

from openlora.node import documents
from openlora.node.documents import ChatMessage, InputDocument, JobSampling, OutputDocument, Usage
from openlora.node.errors import RequestError

UNFIT = [  # the engine refuses the like, or its frames do not hold it
    *(
        b'{"temperature":-1}',
        b'{"temperature":1000}',
        b'{"temperature":1e999}',
        b'{"top_k":-1}',
        b'{"top_k":1%s}' % (b"0" * 40),
    ),
    *(b'{"top_p":0}', b'{"top_p":1.5}', b'{"max_tokens":0}', b'{"max_tokens":-5}'),
    *(b'{"stop":[""]}', b'{"stop":["%s"]}' % (b"a" * 257), b'{"stop":[%s"a"]}' % (b'"a",' * 100_000)),
]


def test_encoding_is_canonical_and_leaves_defaults_out():
    document = InputDocument(
        v=1, messages=(ChatMessage("user", "héllo"),), sampling=JobSampling(top_k=3, temperature=0.5)
    )
    data = documents.encode(document)
    assert data.decode() == (
        '{"messages":[{"content":"héllo","role":"user"}],"sampling":{"temperature":0.5,"top_k":3},"v":1}'
    )
    assert documents.decode_input(data) == document
    assert documents.digest(data) == hashlib.sha256(data).digest()


def test_output_round_trips():
    output = OutputDocument(v=1, text="a\n", token_ids=(1, 2), finish_reason="stop", usage=Usage(3, 2))
    data = documents.encode(output)
    assert documents.decode_output(data) == output
    assert json.loads(data)["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "malformed"),
        (b'{"v":1}', "found none"),
        (b'{"v":1,"prompt":"a","prompt_ids":[1]}', "found prompt, prompt_ids"),
        (b'{"v":2,"prompt":"a"}', "version is 2"),
        (b'{"v":1,"prompt":"a","colour":1}', "colour"),
        (b'{"v":1,"messages":[{"role":"root","content":"a"}]}', "role|enum"),
        (b'{"v":1,"prompt":"a","sampling":{"seed":1}}', "seed"),
        *((b'{"v":1,"prompt":"a","sampling":%s}' % sampling, "sampling") for sampling in UNFIT),
        (b"[" * 100_000, "malformed"),
        (b'{"v":1,"prompt":"\xff"}', "malformed"),
        (b'{"v":1,"prompt":"' + b"a" * (1 << 20) + b'"}', "bytes, more than"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data, complaint):
    with pytest.raises(RequestError, match=complaint) as caught:
        documents.decode_input(data)
    assert caught.value.code == "bad_input"
