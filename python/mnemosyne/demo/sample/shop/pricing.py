"""What things cost before anybody is kind."""


def line_price(unit_price: float, quantity: int) -> float:
    """The price of one line of the basket.

    Rule: unit_price times quantity, rounded to 2 digits.
    """
    raise NotImplementedError


def with_tax(amount: float, rate: float) -> float:
    """What an amount becomes when tax is added to it.

    Rule: amount plus rate percent, rounded to 2 digits.
    """
    raise NotImplementedError
