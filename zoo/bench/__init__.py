"""`zoo bench`: our experts against what a user could pick instead, in one process and one run."""
