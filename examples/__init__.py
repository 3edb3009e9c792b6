"""Worked examples of services, configuration and callers, to read, run and start from."""
