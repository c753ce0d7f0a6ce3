"""Our experts inside other people's models."""
