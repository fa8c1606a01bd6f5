import unittest

from shop.invoice import invoice_total, line_to_pay


class InvoiceTest(unittest.TestCase):
    def test_a_small_line_is_not_discounted(self) -> None:
        self.assertEqual(line_to_pay(4.0, 3), 12.0)

    def test_a_large_line_is_discounted(self) -> None:
        self.assertEqual(line_to_pay(1.5, 20), 27.0)

    def test_the_total_adds_up_the_lines_and_the_tax(self) -> None:
        basket = [("tea", 4.0, 3), ("mug", 8.0, 1), ("scone", 1.5, 20)]
        self.assertEqual(invoice_total(basket), 56.4)

    def test_an_empty_basket_is_free(self) -> None:
        self.assertEqual(invoice_total([]), 0.0)


if __name__ == "__main__":
    unittest.main()
