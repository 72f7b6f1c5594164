"""What belongs to this bundle alone: its digits and its report."""
