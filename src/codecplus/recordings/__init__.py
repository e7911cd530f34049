"""What a user may call data: files, folders, tables, data sets."""
