"""Token wei as people read and write them."""

from decimal import Decimal

TOKEN_WEI = 10**18


def tokens(wei: int) -> str:
    """Token wei as a decimal number of tokens, all digits kept."""
    text = f"{Decimal(wei) / TOKEN_WEI:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
