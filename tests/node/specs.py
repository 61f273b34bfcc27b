"""Job specs for tests."""

from openlora.contracts import JobSpec


def some_spec(nonce: int = 0) -> JobSpec:
    return JobSpec(
        client="0x" + "c1" * 20,
        recipe_id=3,
        input_digest=b"\x11" * 32,
        max_in_tokens=256,
        max_out_tokens=64,
        in_price_per_k=10**18,
        out_price_per_k=2 * 10**18,
        deadline=2_000_000_000,
        lease_secs=120,
        flags=0,
        nonce=nonce or 2**255 + 1,
    )
