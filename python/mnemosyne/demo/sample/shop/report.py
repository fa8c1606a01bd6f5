"""What is printed for the customer."""

from shop.invoice import invoice_total


def receipt(basket: list[tuple[str, float, int]]) -> str:
    """The receipt, as text.

    Let rows be "{quantity} x {name}" for every name, unit_price and quantity in basket.
    Let total be invoice_total of basket.
    Rule: rows and then "to pay: {total:.2f}", one per line.
    """
    raise NotImplementedError
