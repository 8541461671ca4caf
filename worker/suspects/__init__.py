"""Suspects: jobs under which a process died. They run in a child of their worker, so that it alone dies of them."""
