"""Benchmarks: a load generator for servers, offline throughput, start-up time, GPU kernels."""
