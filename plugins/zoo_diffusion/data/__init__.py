"""Pictures with labels or captions, a file a source."""
