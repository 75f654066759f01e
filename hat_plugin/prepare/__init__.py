"""From a downloaded archive to training-ready data."""
