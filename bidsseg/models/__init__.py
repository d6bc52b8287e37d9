"""Models: weights, and a card with everything that is needed to use them."""
