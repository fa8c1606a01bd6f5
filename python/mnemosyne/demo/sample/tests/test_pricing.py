import unittest

from shop.pricing import line_price, with_tax


class PricingTest(unittest.TestCase):
    def test_a_line_costs_unit_price_times_quantity(self) -> None:
        self.assertEqual(line_price(2.5, 4), 10.0)

    def test_a_line_is_rounded_to_the_cent(self) -> None:
        self.assertEqual(line_price(0.333, 2), 0.67)

    def test_tax_is_added_on_top(self) -> None:
        self.assertEqual(with_tax(50.0, 20.0), 60.0)


if __name__ == "__main__":
    unittest.main()
