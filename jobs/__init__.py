"""A shop's jobs: users, orders, sales. The example domain, and the patterns of async SQLAlchemy that a team needs."""
