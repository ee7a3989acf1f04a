"""How work is carried out: here, beside, or on a cluster; what it may take; what it tells."""
