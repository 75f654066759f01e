"""The metrics that METRIC_REGISTRY gets: each measures one restored picture."""
