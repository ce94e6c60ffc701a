"""The archive: every entry of the streams as Parquet files, one row for each event or group of equal ones.

Data flows down: `archivist` reads a stream and advances its group, `rows` turns entries into columns and back,
`store` puts files where a URL says, `entries` reads them again.
"""
