import unittest

from shop.discounts import discounted


class DiscountsTest(unittest.TestCase):
    def test_nine_pieces_cost_the_full_price(self) -> None:
        self.assertEqual(discounted(100.0, 9), 100.0)

    def test_the_tenth_piece_already_counts(self) -> None:
        self.assertEqual(discounted(100.0, 10), 90.0, "from 10 on means that 10 is enough")

    def test_fifty_pieces_are_not_more_than_fifty(self) -> None:
        self.assertEqual(discounted(100.0, 50), 90.0)

    def test_very_many_pieces_are_cheaper_still(self) -> None:
        self.assertEqual(discounted(100.0, 51), 80.0)


if __name__ == "__main__":
    unittest.main()
