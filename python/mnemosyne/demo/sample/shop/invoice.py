"""What the customer pays."""

from shop.discounts import discounted
from shop.pricing import line_price, with_tax

TAX_PERCENT = 20.0


def line_to_pay(unit_price: float, quantity: int) -> float:
    """The price of one line, less its discount.

    Let price be line_price of unit_price and quantity.
    Rule: discounted of price and quantity.
    """
    raise NotImplementedError


def invoice_total(basket: list[tuple[str, float, int]]) -> float:
    """The price of the whole basket, tax included.

    Let net be the sum of line_to_pay of unit_price and quantity
    for every name, unit_price and quantity in basket.
    Rule: with_tax of net and TAX_PERCENT.
    """
    raise NotImplementedError
