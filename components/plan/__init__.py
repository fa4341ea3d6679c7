"""``triptych plan``: how many encode, prefill and decode workers a model and its traffic need, with the arithmetic."""
