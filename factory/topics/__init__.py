"""Brokers behind one door: messages that arrive in batches, and replies that settle them."""
