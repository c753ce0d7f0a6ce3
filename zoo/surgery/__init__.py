"""Models out of models: upcycling of dense ones, merging of models with one anchor, and opting out again."""
