"""Data sets, samplers and LMDB reading and writing."""
