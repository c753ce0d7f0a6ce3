"""Models of this plugin, a file a system."""
