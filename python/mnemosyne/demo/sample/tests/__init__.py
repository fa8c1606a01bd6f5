"""The rules of the shop, as examples."""
