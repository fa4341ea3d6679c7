"""``triptych nodes``: one topology over several machines, started and ended from one of them."""
