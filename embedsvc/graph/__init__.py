"""The graph model: operators, comparators, losses, and the exact step built of them."""
