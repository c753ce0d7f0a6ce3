"""Dance: motion from music, with experts for genres."""
