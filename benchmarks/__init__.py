"""Commands that measure; docs/benchmarks.md has what they gave."""
