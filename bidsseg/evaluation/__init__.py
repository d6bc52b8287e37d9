"""How far label maps agree."""
