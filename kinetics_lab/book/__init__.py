"""A chapter becomes a page: charts, parameters, runs, claims, sweeps and the book's build. Knows no science."""
