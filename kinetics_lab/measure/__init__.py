"""Part II on a device of one's own: timers, suites of cases, rows with their limits and provenance."""
