"""Measurements that stand in docs/results.md; commands, never timed tests."""
