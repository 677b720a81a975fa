"""What to run: settings on offer, their prices, and the best of them for a budget."""
