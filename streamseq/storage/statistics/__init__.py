"""Statistics of the values of fields: gathered while they are written or read, merged, kept with a version."""
