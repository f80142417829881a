"""How much a key may ask and an adapter may be asked, and who has reached it."""
