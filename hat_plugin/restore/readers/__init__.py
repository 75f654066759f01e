"""Readers of weights: each knows the names and shapes of one family of networks and finds the arguments behind them."""
