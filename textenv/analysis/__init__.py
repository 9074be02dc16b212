"""What is known of a process exactly, and whether it measures what it claims to."""
