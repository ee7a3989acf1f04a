"""Registered views fused: placed, planned, in one piece or block by block."""
