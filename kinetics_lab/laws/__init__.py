"""Part III. What the traces say: frontiers, allocations, resampling, fitted laws, prices of published curves."""
