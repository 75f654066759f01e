"""What every run needs; nothing here knows a network by name."""
