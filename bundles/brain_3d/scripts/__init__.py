"""What belongs to this bundle alone: its semi-synthetic brains."""
