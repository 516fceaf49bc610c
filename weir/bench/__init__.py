"""Benchmarks as product code: a load generator for servers, offline throughput, time to start."""
