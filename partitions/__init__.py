"""The ground floor: how graphs, tables and published versions lie on disk, and in what order
buckets are visited. It knows no model; `embedsvc` (learns) and `serving` (answers) stand on it.
"""
