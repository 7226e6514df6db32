"""The parts of the data gate (partitions/validation.py), in reading order.

columns            one Arrow batch as typed columns
key_traits         how keys are spelt
sketches           bounded summaries that merge exactly
column_statistics  of numbers, timestamps, keys
statistics         of a batch; owns statistics.json
data_schema        schema.toml; schema_edits: changes to its lines
inference          the first schema, from statistics
row_rules          single rows against the schema
row_anomalies      what to call the rows that break it
batch_rules        a batch as a whole against the schema
drift              distances and their noise: pure formulas
comparison, key_drift, time_drift   two batches -> distances
anomalies          what was found, causes before effects
data_files         raw files -> batches, and what is wrong with a file
skew               training features against serving logs
"""
