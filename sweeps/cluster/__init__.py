"""Machines: what they have, how trials share them, and what a cluster must show before a sweep starts."""
