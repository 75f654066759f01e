"""What networks are made of: torch and einops only, no BasicSR."""
