"""Crawls that are killed, and started again until they finish."""
