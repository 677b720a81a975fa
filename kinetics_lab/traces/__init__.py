"""Answers as one checked table: readers of what people have, Pass@N, summaries."""
