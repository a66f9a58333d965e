"""Code that all adapters share: option fields, running calls, timeouts, retries, threads, traces, member selection."""
