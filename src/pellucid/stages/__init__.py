"""Everything that touches a disk: parameters in, a record out. Imports core, networks, data."""
