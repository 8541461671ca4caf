"""Ratchet: a background job worker. A job is one database transaction that moves forward once."""
