"""Scripts that act as consumers of bundles whose packages do not install beside ours: each runs in a Python of its own."""
