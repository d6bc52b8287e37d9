"""Models: a card that says what is needed to use them, and weights."""
