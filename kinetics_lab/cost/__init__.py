"""Part I. What a request costs, and on what machine: shapes, policies, hardware, FLOP and bytes."""
