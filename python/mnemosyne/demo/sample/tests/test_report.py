import unittest

from shop.report import receipt


class ReportTest(unittest.TestCase):
    def test_the_receipt_lists_the_basket_and_what_to_pay(self) -> None:
        basket = [("tea", 4.0, 3), ("mug", 8.0, 1), ("scone", 1.5, 20)]
        self.assertEqual(receipt(basket), "3 x tea\n1 x mug\n20 x scone\nto pay: 56.40")


if __name__ == "__main__":
    unittest.main()
