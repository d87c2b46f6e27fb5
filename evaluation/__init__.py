"""Metrics, protocols and reports computed from scores. Independent of networks."""
