"""Data sets: recordings, chorales, what is synthesised, and the user's own."""
