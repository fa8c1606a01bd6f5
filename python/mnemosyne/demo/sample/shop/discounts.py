"""What is taken off for people who buy many."""


def discounted(amount: float, quantity: int) -> float:
    """What is left of a line's price after the discount.

    Rules:
    - for a quantity of more than 50: amount minus 20 percent
    - for a quantity from 10 on: amount minus 10 percent
    - otherwise: amount
    """
    raise NotImplementedError
