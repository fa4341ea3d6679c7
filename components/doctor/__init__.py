"""``triptych doctor``: is this node, or a whole running topology, fit to serve; what to change where it is not."""
